"""A small network of images whose layers can all round their inputs to 8 bits, and inputs for it."""

from functools import cache

import torch
from torch import Tensor, nn

import waterfill


class Images(nn.Module):
    """Convolutions of several sorts, the middle one in two places, and linear layers: [batch, 3, 12, 12] to 10
    classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, 2, padding=1, groups=2, padding_mode="reflect", bias=False)
        self.line = nn.Conv1d(32, 32, 3, padding="same")
        self.again = nn.ModuleList([self.line])
        self.hidden = nn.Linear(32 * 36, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x).relu()).relu()
        x = self.again[0](self.line(x.flatten(2)).relu()).relu()
        return 40 * self.head(self.hidden(x.view(x.shape[0], -1)).relu())


def pictures(count: int, seed: int = 0) -> Tensor:
    """[count, 3, 12, 12], the third channel much larger than the others."""
    x = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([1.0, 1.0, 20.0]).view(3, 1, 1)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Images().eval()


@cache
def _compressed() -> waterfill.CompressedModel:
    return waterfill.compress(network(), spec="Quantize()", price=1e-7)


def packed() -> nn.Module:
    """The network in packed form."""
    return waterfill.pack(_compressed(), Images())
