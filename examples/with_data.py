"""What data are worth: with a few hundred inputs, errors fall where they do no harm.

python examples/with_data.py
"""

import copy

import torch
from torch import Tensor, nn

import waterfill


def moved(model: nn.Module, small: waterfill.CompressedModel, inputs: Tensor) -> float:
    """How far the outputs move, relative to their norm."""
    wanted, found = model(inputs), small.install(copy.deepcopy(model))(inputs)
    return float((found - wanted).norm() / wanted.norm())


def main(width: int = 256, images: int = 2000) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 32)).eval()
    shared = torch.randn(2 * images, width // 8) @ torch.randn(width // 8, width) / (width // 8) ** 0.5
    inputs = shared + 0.3 * torch.randn(2 * images, width)  # correlated, as real inputs are
    known, unseen = inputs.split(images)

    for bits in (4, 3, 2):
        blind = waterfill.compress(model, bits=bits)
        informed = waterfill.compress(model, known.split(100), bits=bits)  # no labels
        with torch.no_grad():
            plain, better = (100 * moved(model, small, unseen) for small in (blind, informed))
        print(f"{bits} bits per weight: outputs move by {plain:.2f} % without data, {better:.2f} % with")


if __name__ == "__main__":
    main()
