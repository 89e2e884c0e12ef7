"""Small networks that are stacks of blocks, in the ways in which blocks are called and return."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH = 48, 32


class Block(nn.Module):
    """Attention and a gated layer, as in a Llama: q, k and v have the same inputs, and so have gate and up."""

    def __init__(self, width: int = WIDTH, inner: int = 48) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        y = self.norm1(x)
        x = x + self.o(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y), attn_mask=mask))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class InTuple(Block):
    """Returns its hidden state in a tuple, with another tensor."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return super().forward(x, mask), torch.ones(3)


class InDict(Block):
    """Takes its hidden state by keyword and returns it in a dict."""

    def forward(self, mask: Tensor | None = None, hidden_states: Any = None) -> Any:
        return {"hidden_states": super().forward(hidden_states, mask), "weights": None}


class Cached(Block):
    """Writes to a cache that it is given, and reads it: with what another run left there it says something else."""

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: "Cache | None" = None) -> Any:
        assert cache is not None
        cache.seen.append(x)
        return super().forward(x, mask) + 0.1 * sum(1 for seen in cache.seen if seen.shape == x.shape)


class Cache:
    """What has been seen."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Stack(nn.Module):
    """A causal language model: tokens [batch, time] to logits [batch, time, VOCABULARY]. kinds: of its blocks."""

    def __init__(self, *kinds: type[nn.Module], tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(kind() for kind in kinds)
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        x = self.embedding(tokens)
        for layer in self.layers:
            x = self.through(layer, x, mask)
        return self.head(self.norm(x))

    def through(self, layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        if isinstance(layer, InDict):
            return layer(mask=mask, hidden_states=x)["hidden_states"]
        if isinstance(layer, Cached):
            return layer(x, mask=mask, cache=Cache())
        after = layer(x, mask=mask)
        return after[0] if isinstance(after, tuple) else after


class Skipping(Stack):
    """Adds what came before the blocks to what comes out of each: something else than a hidden state passes."""

    def through(self, layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return layer(x, mask=mask) + 0.5 * x


class Growing(Block):
    """Makes its hidden state longer."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return torch.cat([super().forward(x), x[:, :1]], 1)


def stack(*kinds: type[nn.Module], of: type[Stack] = Stack, tied: bool = True) -> Stack:
    """A network of such blocks; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = of(*kinds, tied=tied).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(1.5)
    return made


def tokens(count: int = 12, length: int = 24, seed: int = 0) -> list[Tensor]:
    """Batches of two rows of tokens."""
    random = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, VOCABULARY, (count, length), generator=random).split(2))
