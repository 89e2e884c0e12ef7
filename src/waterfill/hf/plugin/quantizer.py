"""What transformers knows of a network that was loaded from a compressed folder: its quantization config and its
`HfQuantizer`, which stay with the model. They load nothing: transformers reads weights from `.safetensors` only, so
`pretrained` gives it the tensors of our file instead."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from waterfill.errors import BadInput
from waterfill.hf.folder import METHOD, WEIGHTS

_AT_A_TIME = 1 << 22  # entries that are added up as int64


class WaterfillConfig(QuantizationConfigMixin):
    """How a compressed folder is loaded: `from_pretrained(folder, quantization_config=WaterfillConfig(packed=True))`.

    Args:
        packed: whether layers run from the compressed weights (`waterfill.pack`), instead of dense ones.
        input_bits: as of `waterfill.pack`.
    """

    def __init__(self, packed: bool = False, input_bits: int = 16, **_: Any) -> None:
        self.quant_method, self.packed, self.input_bits = METHOD, packed, input_bits

    def to_dict(self) -> dict[str, Any]:
        """What a folder's config holds: the name of the loader. How it is loaded is for each loading to say."""
        return {"quant_method": METHOD}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same, for releases of transformers that show configs by it."""
        return self.to_dict()

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict, which transformers takes the config of a loaded model for."""
        return self.to_dict().get(key, default)


@dataclass(frozen=True)
class Origin:
    """The file that a model's weights came from, and what shows that neither has changed since.

    stamp: bytes of the file and its time. sum: of the words of all tensors of the model.
    """

    folder: Path
    stamp: tuple[int, int]
    sum: int

    @classmethod
    def of(cls, folder: Path, model: nn.Module) -> "Origin":
        """The origin of a model that was loaded just now."""
        return cls(folder, _stamp(folder), _sum(model))

    def check(self, model: nn.Module) -> Path:
        """The file, if it and the model are as they were. Raises BadInput."""
        path = self.folder / WEIGHTS
        if not path.is_file() or _stamp(self.folder) != self.stamp:
            raise BadInput(f"{path}, from which the model was loaded, is gone or has changed; load the model again")
        if _sum(model) != self.sum:
            raise BadInput(
                f"the weights of the model are no longer those of {path}, so that file is not what you want to save: "
                "call model.dequantize() and then save_pretrained for plain weights, and compress these anew"
            )
        return path


class WaterfillQuantizer(HfQuantizer):
    """The network's origin, and what it does not do. origin: None until the weights are there."""

    origin: Origin | None = None
    packed = False

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """The type that a tensor of the file is cast to; None for places that are held for packed layers. Tensors of
        another state dict are the library's to cast."""
        if not hasattr(param, "cast_to"):
            return super().get_new_dtype(converter, param, dtype)
        wanted: torch.dtype | None = param.cast_to(dtype)
        return wanted

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Whether transformers itself can write the weights, which are ours to write."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: what is trained is no longer what the file holds. After `model.dequantize()` all is."""
        return False

    def _dequantize(self, model: nn.Module, dtype: Any = None) -> nn.Module:
        """The weights of a dense network are plain already. Raises BadInput for a packed one."""
        if self.packed:
            raise BadInput("a packed network has no plain weights: load its folder without packed=True")
        return model


def _stamp(folder: Path) -> tuple[int, int]:
    found = os.stat(folder / WEIGHTS)
    return found.st_size, found.st_mtime_ns


def _sum(model: nn.Module) -> int:
    """A sum of the bytes of all parameters and of what stands for them in packed layers, tensor by tensor; the same on
    every device."""
    total = 0
    for number, tensor in enumerate([*model.parameters(), *model.buffers()], 1):
        pieces = _words(tensor.detach()).split(_AT_A_TIME) if tensor.numel() else ()
        total += number * sum(int(piece.sum(dtype=torch.int64)) for piece in pieces)
    return total


def _words(tensor: Tensor) -> Tensor:
    """The entries of a tensor as integers of their size; smaller ones where there are none of that size."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.contiguous().reshape(-1)
    return flat.view(integers.get(tensor.element_size(), torch.uint8))
