"""Tensors that are kept bit for bit whatever the budget, and the bytes that they take of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from waterfill.compression.allocation.weight import Weight
from waterfill.network.layout import RAW

_NAMED = 3


@dataclass(frozen=True)
class Exact:
    """tensors: (name, bytes, reason) of each, the largest first."""

    tensors: Sequence[tuple[str, int, str]]

    @classmethod
    def among(cls, weights: Sequence[Weight]) -> "Exact":
        """The tensors among these weights that are kept bit for bit."""
        raw = [weight for weight in weights if weight.layout.role == RAW and weight.layout.entries]
        sizes = [(weight.name, math.ceil(weight.curve.at_grid(0).bits / 8), weight.reason) for weight in raw]
        return cls(sorted(sizes, key=lambda size: -size[1]))

    @property
    def bytes(self) -> int:
        """Bytes of all of them in the file, about."""
        return sum(size for _, size, _ in self.tensors)

    def text(self) -> str:
        """Their bytes, and the largest of them by name, in words."""
        named = [f"{name!r} ({size} bytes; {reason})" for name, size, reason in self.tensors[:_NAMED]]
        more = f" and {len(self.tensors) - _NAMED} more" if len(self.tensors) > _NAMED else ""
        return f"{self.bytes} bytes are taken by tensors that are kept bit for bit: {', '.join(named)}{more}"
