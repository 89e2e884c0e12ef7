"""The tensors of a file as `from_pretrained` takes those of a state dict: decoded when it asks for their content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from waterfill.model.lazy import CompressedTensors


@dataclass(eq=False)
class FromFile:
    """One tensor, decoded each time that it is asked for."""

    tensors: CompressedTensors
    name: str

    def __getitem__(self, _: Any) -> Tensor:
        return self.tensors[self.name]

    def cast_to(self, dtype: torch.dtype | None) -> torch.dtype | None:
        """The type to cast it to, where `dtype` is what the model has there."""
        return dtype


@dataclass(eq=False)
class Held:
    """The place of a weight that a packed layer will take: zeros that share one number, in the type of the model."""

    shape: tuple[int, ...]
    dtype: torch.dtype = field(default=torch.float32)

    def __getitem__(self, _: Any) -> Tensor:
        return torch.zeros((), dtype=self.dtype, device="cpu").expand(self.shape)

    def cast_to(self, dtype: torch.dtype | None) -> None:
        """None, for a cast would take memory; zeros of the model's type are given instead."""
        self.dtype = dtype or self.dtype


def state_of(tensors: CompressedTensors, held: Mapping[str, str]) -> dict[str, FromFile | Held]:
    """All tensors of a file by name, tied ones included. held: the names whose places are held."""
    shapes = {name: tensors.layouts[tensors.aliases.get(name, name)].shape for name in held}
    return {name: Held(shapes[name]) if name in held else FromFile(tensors, name) for name in tensors}
