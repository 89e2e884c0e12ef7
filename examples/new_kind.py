"""A kind of part of your own, in one file: it works in recipes, sums, budgets and files, and the contract checks it.

python examples/new_kind.py
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

import waterfill
from waterfill import Importance, Part, Spec
from waterfill.coding.codes import matrix
from waterfill.coding.stream import Reader, Sink
from waterfill.testing import check_spec


@dataclass(frozen=True, eq=False)
class OffsetPart(Part):
    """One number for each row: steps [rows] (int64) times unit, the same in all columns."""

    steps: Tensor
    unit: float
    kind: ClassVar[int] = 1000  # its number in files, never to be used for another kind

    def dense(self) -> Tensor:
        return (self.steps.float() * self.unit)[:, None].repeat(1, self.shape[1])

    def write(self, out: Sink) -> None:
        out.claim(self.shape[0] * self.shape[1])
        out.float32(self.unit)
        out.put(matrix.plan(self.steps.numpy()[:, None]))

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        src.claim(shape[0] * shape[1])
        unit = src.float32()
        return cls(shape, torch.from_numpy(matrix.read(src, shape[0], 1)[:, 0]).long(), unit)


@dataclass(frozen=True)
class Offset(Spec):
    """The mean of every row, in steps that the price pays for."""

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        means = target.mean(1)
        cost = importance.distortion(torch.ones_like(target)) / max(1, len(target))  # of an offset by 1, per row
        unit = float(torch.tensor(max((12 * price / (2 * cost)) ** 0.5, float(means.abs().max()) / 1e6, 1e-30)))
        return OffsetPart((target.shape[0], target.shape[1]), (means / unit).round().long(), unit)


def main(rows: int = 128, cols: int = 256) -> None:
    check_spec(Offset())
    torch.manual_seed(0)
    state = {"weight": torch.randn(rows, cols) + 2 * torch.randn(rows, 1)}  # rows that are not centered
    for recipe in ("Quantize()", "Offset() + Quantize()"):
        compressed = waterfill.compress(state, spec=recipe, bits=2.5)
        (row,) = compressed.table()
        print(f"{recipe:22} {row['bytes']} bytes, {100 * row['error']:.2f} % off: {row['part']}")


if __name__ == "__main__":
    main()
