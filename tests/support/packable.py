"""A small network with every kind of layer that can be packed, and others."""

import torch
from torch import Tensor, nn

TOKENS = torch.arange(33).reshape(3, 11) * 2


class Conv1D(nn.Module):
    """As transformers has it: x W + b."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(0.1 * torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Net(nn.Module):
    """Tokens [batch, time] to logits; the head is tied to the embedding, one layer stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(90, 64)
        self.up = nn.Linear(64, 150)
        self.down = Conv1D(64, 150)
        self.again = nn.ModuleList([self.up])
        self.norm = nn.LayerNorm(64)
        self.conv = nn.Conv1d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 90, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.down(self.again[0](x).relu()) + self.down(self.up(x).relu())
        x = x + self.conv(x.mT).mT
        return self.head(self.norm(x))
