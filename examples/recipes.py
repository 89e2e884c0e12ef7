"""The same weight by different recipes in the same bytes: what each kind of part is good for.

python examples/recipes.py
"""

import torch
from torch import Tensor

import waterfill
from waterfill import Codebook, LowRank, Prune, Quantize

RECIPES = (
    Quantize(),
    Codebook(),
    LowRank(),
    Prune(),
    Quantize() + Prune(),
    Quantize() + LowRank(),
    Quantize() | Codebook(values="ternary"),
)


def weight(rows: int, cols: int) -> Tensor:
    """Eight shared directions, noise, and one outlier in a hundred entries, [rows, cols]."""
    shared = torch.randn(rows, 8) @ torch.randn(8, cols)
    outliers = 15 * torch.randn(rows, cols) * (torch.rand(rows, cols) < 0.01)
    return 0.02 * (shared + torch.randn(rows, cols) + outliers)


def main(rows: int = 256, cols: int = 512) -> None:
    torch.manual_seed(0)
    state = {"layer.weight": weight(rows, cols)}
    print(f"{'recipe':45}  bytes   error")
    for spec in RECIPES:
        compressed = waterfill.compress(state, spec=spec, bits=2)
        assert waterfill.parse(repr(spec)) == spec  # a recipe is text, for a command line or a file
        (row,) = compressed.table()
        print(f"{spec!r:45} {row['bytes']:6} {100 * row['error']:6.2f} %  {row['part']}")
    fixed = Quantize(bits=2, group=64)  # a rate of its own: no budget
    (row,) = waterfill.compress(state, spec=fixed).table()
    print(f"{fixed!r:45} {row['bytes']:6} {100 * row['error']:6.2f} %  {row['part']}")


if __name__ == "__main__":
    main()
