"""A .wf file beside the checkpoint it came from: which tensors differ, and by how much."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from waterfill.cli.failure import VerifyError
from waterfill.cli.listing import Item, Listing, overview
from waterfill.cli.tensors import CompressedTensors


@dataclass(frozen=True)
class Comparison:
    """items: the tensors with their errors relative to the original's norm. error: that of all together."""

    items: tuple[Item, ...]
    error: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"error": self.error, "errors": {item.name: item.error for item in self.items}}

    def text(self, everything: bool) -> str:
        """A table, and a line on all of it."""
        if not self.error:
            return "every tensor is the original, bit for bit"
        return f"{overview(self.items, everything)}\n\nrelative error of all weights: {100 * self.error:.3f} %"
