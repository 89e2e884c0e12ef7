"""The windows that a convolution multiplies with its kernel, for any number of spatial dimensions; a sample of them
where there are far more than a Gram matrix needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_POSITIONS_ALWAYS_USED = 8192  # positions of a batch that are always used
_LEAST_SQUARE = 1e-24  # of a sum of squares in float32; below, some of them may have vanished
_PER_COLUMN = 4  # and so many for each column


@dataclass(frozen=True)
class Geometry:
    """Of a convolution. padding: (before, after) of each spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def geometry_of(kernel: Sequence[int], given: Mapping[str, Any]) -> Geometry:
    """From the arguments of a call into torch, numbers or one for each dimension, padding possibly a word."""
    dims = len(kernel)
    stride, dilation = _each(given.get("stride", 1), dims), _each(given.get("dilation", 1), dims)
    padding = given.get("padding", 0)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((p, p) for p in _each(0 if padding == "valid" else padding, dims))
    return Geometry(tuple(kernel), stride, pads, dilation, int(given.get("groups", 1)))


def _each(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) if len(value) == dims else tuple(value) * dims


def pick(positions: int, cols: int, generator: torch.Generator) -> Tensor | None:
    """Which of so many positions to use for a Gram matrix of `cols` columns, in order; None for all.

    One at random from each of as many equal stretches.
    """
    count = max(_POSITIONS_ALWAYS_USED, _PER_COLUMN * cols)
    if positions <= count:
        return None
    within = torch.rand(count, dtype=torch.float64, device="cpu", generator=generator)
    at = torch.arange(count, dtype=torch.float64, device="cpu") + within
    return (at * (positions / count)).long().clamp_max(positions - 1)


def vectors(x: Tensor, generator: torch.Generator, chosen_for: int = 0) -> Tensor:
    """Some of the vectors of x [..., cols], as columns [1, cols, vectors], float32; chosen_for: as of `windows`."""
    flat = x.reshape(-1, x.shape[-1])
    chosen = pick(len(flat), chosen_for or flat.shape[1], generator)
    return (flat if chosen is None else flat[chosen.to(flat.device)]).float().T[None]


def windows(
    x: Tensor, geometry: Geometry, positions: Sequence[int], generator: torch.Generator, chosen_for: int = 0
) -> Tensor:
    """The windows of x [samples, channels, *space] or [channels, *space] as columns, float32.

    positions: of the kernel in each dimension. chosen_for: columns that the number of windows is chosen for, where it
    is to be that of another input; 0 for those of this one. Returns [groups, channels / groups * prod(kernel),
    windows], kernel positions fastest, samples one after the other.
    """
    x = _padded(x, geometry)
    channels, space = x.shape[1], x.shape[2:]
    cols = channels // geometry.groups * math.prod(geometry.kernel)
    each = math.prod(positions)
    chosen = pick(len(x) * each, chosen_for or cols, generator)
    chosen = torch.arange(len(x) * each, dtype=torch.int64, device="cpu") if chosen is None else chosen
    starts = chosen // max(1, each) * math.prod(space) + _starts(geometry, space, positions)[chosen % max(1, each)]
    index = (_inside(geometry, space)[:, None] + starts).reshape(-1).to(x.device)
    flat = x.transpose(0, 1).reshape(channels, -1).float()
    return flat.index_select(1, index).reshape(geometry.groups, cols, -1)


def all_windows(x: Tensor, geometry: Geometry, positions: Sequence[int]) -> Tensor:
    """All windows, sample by sample: [samples, groups, channels / groups * prod(kernel), windows of one sample]."""
    x = _padded(x, geometry).float()
    samples, channels, *space = x.stride()
    within = [step * d for step, d in zip(space, geometry.dilation, strict=True)]
    between = [step * s for step, s in zip(space, geometry.stride, strict=True)]
    view = x.as_strided((*x.shape[:2], *geometry.kernel, *positions), (samples, channels, *within, *between))
    return view.reshape(len(x), geometry.groups, -1, math.prod(positions))


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    """[samples, channels, *space] with the padding in place."""
    x = x.reshape(-1, *x.shape[-1 - len(geometry.kernel) :])
    return F.pad(x, [p for pair in reversed(geometry.padding) for p in pair])


def _starts(geometry: Geometry, space: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Where each window begins in the padded space, flattened."""
    return _places(positions, geometry.stride, space)


def _inside(geometry: Geometry, space: Sequence[int]) -> Tensor:
    """Where each position of the kernel lies from the beginning of its window."""
    return _places(geometry.kernel, geometry.dilation, space)


def _places(counts: Sequence[int], steps: Sequence[int], space: Sequence[int]) -> Tensor:
    """Flattened places of a grid of `counts` points, `steps` apart, in a space; the last dimension fastest."""
    places = torch.zeros(1, dtype=torch.int64, device="cpu")
    for d, (count, step) in enumerate(zip(counts, steps, strict=True)):
        along = torch.arange(count, dtype=torch.int64, device="cpu") * step * math.prod(space[d + 1 :])
        places = (places[:, None] + along).reshape(-1)
    return places


def squares(values: Tensor, channel: int) -> Tensor:
    """Sums of squares over all dimensions but one, counted from the end: [channels]; float64 where float32 is too short
    for them."""
    others = [d for d in range(values.ndim) if d != values.ndim + channel]
    values = values.detach()
    sums = values.float().square().sum(others) if others else values.float().square()
    if not _LEAST_SQUARE < float(sums.sum()) < math.inf and bool(values.any()):
        wide = values.double().square()
        return wide.sum(others) if others else wide
    return sums
