"""The numbers of a part beside its codes: steps, scales, levels of a codebook, entries that pruning keeps.

All of them are trained as relative changes, 0 for a number that stays: a scale is multiplied by the exponential of its
change; a level or an entry moves by its change times the root mean square of all. So one learning rate suits all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from waterfill.part import Part
from waterfill.parts.codebook import CodebookPart
from waterfill.parts.dense import DensePart, rounded
from waterfill.parts.fixed_rate.grouped import GroupedPart
from waterfill.parts.quantized import QuantizedPart
from waterfill.parts.quantizer.grid import FARTHEST, Grid
from waterfill.parts.trained.composition import Composition, composed

Numbers = Composition[Tensor, Tensor]
"""A part as a function of its numbers; each leaf is a tensor (float32) of changes of zero, in its shape."""
_EIGHTHS = 8 / math.log(2)  # of an octave, in a change of one
_MOST = 20.0  # that a change of a scale may be
_SIGNED_POWERS = 3  # levels up to which powers of two are a scale and signs, which may be any number
_VECTORS = ("rows", "channels", "places")


def by_numbers(part: Part) -> Numbers:
    """A part as a function of the numbers beside its codes; what is stored to the bit is constant."""
    return composed(part, _numbers)


def _numbers(part: Part, inner: bool) -> Numbers | None:
    if isinstance(part, QuantizedPart):
        return _of_quantized(part)
    if isinstance(part, GroupedPart):
        return _of_grouped(part)
    if isinstance(part, CodebookPart) and not _powers_of_two(part.book):
        return _of_codebook(part)
    if isinstance(part, DensePart) and inner and part.values.dtype == torch.float32:
        return _of_entries(part) if bool(torch.isfinite(part.values).all()) else None
    return None


def _none(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _on_device(constants: Callable[[], tuple[Tensor, ...]]) -> Callable[[torch.device], tuple[Tensor, ...]]:
    """Constants on a device, made and moved there when they are needed first."""
    return cache(lambda device: tuple(value.to(device) for value in constants()))


def _of_quantized(part: QuantizedPart) -> Numbers:
    """By its step [1] and the scales of rows, channels and positions that there are, which stay eighths of octaves."""
    vectors = {name: own for name in _VECTORS if (own := getattr(part.grid, name)) is not None}
    on = _on_device(lambda: (part.dense(),))

    def factors(own: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: torch.exp(_whole(change)) for name, change in zip(vectors, own, strict=True)}

    def restore(given: Sequence[Tensor]) -> Tensor:
        value = on(given[0].device)[0] * torch.exp(given[0])
        found = factors(given[1:])
        if "rows" in found:
            value = value * found["rows"][:, None]
        if "channels" in found or "places" in found:
            channels, places = (found.get(name, given[0].new_ones(1)) for name in ("channels", "places"))
            count = part.shape[1] // len(places) if len(channels) == 1 else len(channels)
            columns = (channels.expand(count)[:, None] * places).flatten()
            value = value * columns.repeat_interleave(part.shape[1] // len(columns))
        return value

    def rebuilt(given: Sequence[Tensor]) -> Part:
        step = float(np.float32(part.grid.step * math.exp(float(_possible(given[0])))))
        moved = {
            name: np.clip(
                own + np.rint(_EIGHTHS * _possible(change).double().numpy()).astype(np.int64), -FARTHEST, FARTHEST
            )
            for (name, own), change in zip(vectors.items(), given[1:], strict=True)
        }
        made = replace(part, grid=Grid(step, **{name: moved.get(name) for name in _VECTORS}))
        return made if step > 0 and bool(torch.isfinite(made.dense()).all()) else part

    return Numbers((_none(1), *(_none(len(own)) for own in vectors.values())), restore, rebuilt)


def _possible(change: Tensor) -> Tensor:
    """Changes of scales that may be written: none for what is no number."""
    return torch.nan_to_num(change).clamp(-_MOST, _MOST)


def _whole(change: Tensor) -> Tensor:
    """Changes of scales as they are written, in whole eighths of an octave; gradients pass as if they were not."""
    return change + ((_EIGHTHS * change).round() / _EIGHTHS - change).detach()


def _of_grouped(part: GroupedPart) -> Numbers:
    """By the scales [rows, groups] of a fixed rate, which stay float16."""
    on = _on_device(lambda: (part.dense(),))

    def restore(given: Sequence[Tensor]) -> Tensor:
        return on(given[0].device)[0] * torch.exp(given[0]).repeat_interleave(part.group, 1)[:, : part.shape[1]]

    def rebuilt(given: Sequence[Tensor]) -> Part:
        scales = (part.scales.float() * torch.exp(_possible(given[0]))).half()
        return replace(part, scales=scales) if bool(torch.isfinite(scales).all()) else part

    return Numbers((_none(*part.scales.shape),), restore, rebuilt)


def _powers_of_two(book: np.ndarray) -> bool:
    """Whether levels are signed powers of two, as kernels that shift need them."""
    mantissas = np.abs(np.frexp(book)[0])
    return len(book) > _SIGNED_POWERS and bool(np.isin(mantissas, (0.0, 0.5)).all())


def _of_codebook(part: CodebookPart) -> Numbers:
    """By its levels [levels]; those of a symmetric codebook move together, a level of zero stays, and what was
    bfloat16 stays so."""
    book = torch.from_numpy(part.book.copy())
    size = float(book.square().mean().sqrt())
    symmetric = len(book) > 1 and bool((book == -book.flip(0)).all())
    bfloat16 = bool((book.bfloat16().float() == book).all())
    on = _on_device(lambda: (book, (book != 0).float(), torch.from_numpy(part.places)))

    def levels(change: Tensor) -> Tensor:
        own, free, _ = on(change.device)
        moved = own + size * change * free
        return (moved - moved.flip(0)) / 2 if symmetric else moved

    def rebuilt(given: Sequence[Tensor]) -> Part:
        moved = levels(given[0])
        moved = moved.bfloat16().float() if bfloat16 else moved
        if not bool(torch.isfinite(moved).all()):
            return part
        # Levels may have changed their order, or be the same by now: every entry keeps its own.
        ascending, place = np.unique(moved.numpy() + np.float32(0), return_inverse=True)  # plus zero: no negative zeros
        return part.with_levels(ascending, place.reshape(-1)[part.places])

    return Numbers((_none(len(book)),), lambda given: levels(given[0])[on(given[0].device)[2]], rebuilt)


def _of_entries(part: DensePart) -> Numbers:
    """By its entries [rows, cols], in as many bits of mantissa as they have."""
    size = float(part.values.square().mean().sqrt())
    mantissa, on = part.mantissa, _on_device(lambda: (part.values,))

    def restore(given: Sequence[Tensor]) -> Tensor:
        moved = on(given[0].device)[0] + size * given[0]
        return moved + (rounded(moved.detach(), mantissa) - moved.detach())  # gradients pass as if it were not rounded

    def rebuilt(given: Sequence[Tensor]) -> Part:
        moved = part.values + size * given[0]
        return replace(part, values=rounded(moved, mantissa)) if bool(torch.isfinite(moved).all()) else part

    return Numbers((_none(*part.shape),), restore, rebuilt)
