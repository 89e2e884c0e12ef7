"""How an export is made: what is asked for beside its format."""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from waterfill.errors import BadInput, CannotExport


@dataclass(frozen=True)
class Network:
    """The user's own network, of the class that was compressed, and batches of its inputs; the first is traced."""

    model: nn.Module
    batches: Any


@dataclass(frozen=True)
class How:
    """How an export is made.

    Args:
        force: whether an existing output may be replaced.
        requantize: bits of weights that the format does not hold as they are; None to refuse those.
        group: columns that share a scale where weights are requantized.
        dtype: of tensors that are held dense in a folder, such as "bfloat16"; None for their own.
        shard: bytes of a file of a folder, at most, but for a tensor that alone is larger.
        activations: 8 for convolutions and LSTM of ONNX whose inputs are rounded to 8 bits too, those of convolutions
            by the ranges that the batches of the network show; None for float inputs.

    Example:
        >>> waterfill.export.export("net.wf", "net.onnx", "onnx", network=Network(Net(), batches), how=How(force=True))
    """

    force: bool = False
    requantize: int | None = None
    group: int = 32
    dtype: str | None = None
    shard: int = 5_000_000_000
    activations: int | None = None

    def __post_init__(self) -> None:
        if self.requantize is not None and not (isinstance(self.requantize, int) and 2 <= self.requantize <= 8):
            raise BadInput(f"requantize={self.requantize!r}: bits is a whole number from 2 to 8")
        if self.activations not in (None, 8):
            raise BadInput(f"activations={self.activations!r}: inputs are rounded to 8 bits, or to none (None)")
        if not isinstance(self.group, int) or self.group < 1:
            raise BadInput(f"group={self.group!r} is no positive number of columns")


def extra(name: str, why: str) -> ModuleType:
    """A library that an export needs. Raises CannotExport, naming what to install, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CannotExport(f'{why} needs {name} ({error}): pip install "waterfill[export]"') from error


def asked_requantize(reasons: dict[str, str], format_name: str) -> CannotExport:
    """The error for weights that a format does not hold, by name."""
    shown = [f"{name!r} ({reason})" for name, reason in list(reasons.items())[:3]]
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return CannotExport(
        f"{format_name} cannot hold {', '.join(shown)}{more}; compress with a recipe that it holds (docs/exports.md), "
        "or have these weights rounded once more, with a loss that is measured: requantize=4, --requantize 4"
    )
