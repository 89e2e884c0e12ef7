"""Small networks with every layer that a checkpoint may hold, and the tensors that real ones surprise us with."""

import torch
from torch import Tensor, nn

from waterfill.dtypes import octets


class Mixed(nn.Module):
    """One layer of each kind that has weights, buffers of several types, and a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(40, 30)
        self.conv1 = nn.Conv1d(8, 12, 5)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.conv3 = nn.Conv3d(4, 6, 3)
        self.transposed = nn.ConvTranspose2d(8, 6, 4)
        self.grouped = nn.Conv2d(8, 16, 3, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.embedding = nn.Embedding(100, 24)
        self.lstm = nn.LSTM(20, 16)
        self.gru = nn.GRU(20, 16)
        self.attention = nn.MultiheadAttention(32, 4)
        self.norm = nn.BatchNorm2d(16)
        self.experts = nn.Parameter(torch.randn(8, 32, 16))
        self.head = nn.Linear(24, 100, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.rand(10, 10) < 0.5)
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("scalar", torch.tensor(3.5))
        self.register_buffer("table", torch.arange(50))


def mixed() -> Mixed:
    """The same `Mixed` every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Mixed()


def state() -> dict[str, Tensor]:
    """A few matrices, a kernel and their vectors: a network of 12,000 weights."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 8

    return {
        "a.weight": draw(64, 96),
        "a.bias": draw(64),
        "b.weight": 3 * draw(32, 12, 3, 3),
        "b.bias": draw(32),
        "c.weight": draw(50, 48) * torch.rand(50, 1, generator=generator),
        "c.steps": torch.arange(5),
    }


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit, NaN payloads included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(octets(a), octets(b))


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |a|."""
    return float((a.double() - b.double()).norm() / a.double().norm())
