"""Tensors that are kept bit for bit though their numbers could be rounded: constants, and values without a rounding.

A module knows which tensors are no parameters. In a bare state dict they are recognized by values and well-known names:
masks of zeros and ones, infinities, progressions such as the frequencies of rotary embeddings.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.network.layout import can_be_rounded

KEPT = "kept bit for bit"
"""The suffix of every such reason."""
IGNORED = f"ignored: {KEPT}"
"""Why a tensor is kept that the user names so."""
_BUFFER = f"a buffer, no parameter: {KEPT}"
BINARY = f"zeros and ones: {KEPT}"
"""Why a mask is kept; a codebook of two levels is exact too, and finds rows that repeat."""
_INFINITE = f"holds infinite values: {KEPT}"
_BEYOND = f"holds values beyond float32: {KEPT}"
_COMPUTED = f"a constant that is computed, not learned: {KEPT}"

_FREQUENCIES = ("inv_freq",)  # rotary embeddings; scaled ones are no progression any more
_PIECE = 1 << 20  # entries that are examined at a time
_FEWEST = 8  # entries; fewer could be a progression by chance


def why_kept(name: str, tensor: Tensor, *, constant: bool = False, measured: bool = False) -> str:
    """Why a tensor is kept bit for bit; empty if it is not.

    constant: whether a module knows it as no parameter. measured: whether its importance was measured; then only values
    that cannot be rounded are kept. Raises BadInput for NaN in a tensor that would be rounded.
    """
    if not can_be_rounded(tensor.dtype) or tensor.numel() == 0:
        return ""
    values = _Values.of(tensor)
    if values.nan:
        raise BadInput(
            f"tensor {name!r} holds {values.nan} values that are NaN; repair the checkpoint, "
            "or keep every bit as it is with lossless=True (--lossless)"
        )
    if values.infinite or values.beyond:
        return _INFINITE if values.infinite else _BEYOND
    return "" if measured else _why_constant(name, tensor, values, constant)


def _why_constant(name: str, tensor: Tensor, values: "_Values", constant: bool) -> str:
    """Why finite values are a constant, by name or values; empty where they may be weights."""
    if values.binary:
        return BINARY
    if constant:
        return _BUFFER
    computed = name.rpartition(".")[2] in _FREQUENCIES or (tensor.ndim == 1 and is_progression(tensor))
    return _COMPUTED if computed else ""


@dataclass
class _Values:
    """Counts of the values of a tensor that are NaN, infinite, or finite but beyond float32; and whether all are zeros
    and ones, both of them."""

    nan: int = 0
    infinite: int = 0
    beyond: int = 0
    binary: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> "_Values":
        counts, only, ones, entries = cls(), True, 0, 0
        largest, nonzero = 0.0, False
        for piece in pieces(tensor):
            narrow = piece.float()
            if piece.dtype == torch.float64:
                largest, nonzero = max(largest, float(narrow.abs().max())), nonzero or bool(piece.any())
            if not math.isfinite(float(narrow.sum())):  # finite ones may overflow too, together
                nan, finite = int(piece.isnan().sum()), int(piece.double().isfinite().sum())
                counts.nan += nan
                counts.infinite += piece.numel() - finite - nan
                counts.beyond += finite - int(narrow.isfinite().sum())
            if only and bool(((narrow[:64] == 0) | (narrow[:64] == 1)).all()):
                ones += int((narrow == 1).sum())
                entries += piece.numel()
                only = bool(((narrow == 0) | (narrow == 1)).all())
            else:
                only = False
        counts.beyond += nonzero and largest < torch.finfo(torch.float32).tiny
        negative = only and bool(torch.signbit(tensor.real.float()).any())  # a codebook knows one zero
        counts.binary = only and 0 < ones < entries and not negative and not tensor.is_complex()
        return counts


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The real numbers of a tensor, some at a time, [entries]; never a copy of the whole."""
    values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    values = values.detach()
    if values.is_contiguous():
        yield from values.view(-1).split(_PIECE)
        return
    rows = max(1, _PIECE * values.shape[0] // values.numel())
    for some in values.split(rows):
        yield some.reshape(-1)


def is_progression(vector: Tensor) -> bool:
    """Whether a vector is arithmetic or geometric to the last bits of its type, and rises or falls all the way."""
    if vector.is_complex() or not _FEWEST <= vector.numel() <= _PIECE:
        return False
    eps = max(torch.finfo(vector.dtype).eps, torch.finfo(torch.float32).eps)  # wider ones were narrower when computed
    values = vector.detach().double().cpu()
    steps = values.diff()
    if not (bool((steps > 0).all()) or bool((steps < 0).all())):
        return False
    first, last, at = float(values[0]), float(values[-1]), torch.arange(len(values), dtype=torch.float64, device="cpu")
    even = first + (last - first) / (len(values) - 1) * at
    if bool(((values - even).abs() <= eps * values.abs().max()).all()):
        return bool(steps.abs().min() > 4 * eps * values.abs().max())  # nearly constant numbers lie on any line
    if first * last <= 0:
        return False
    ratio = math.log(last / first) / (len(values) - 1)
    geometric = first * (ratio * at).exp()
    return abs(ratio) > 8 * eps and bool(((values - geometric).abs() <= 2 * eps * values.abs()).all())
