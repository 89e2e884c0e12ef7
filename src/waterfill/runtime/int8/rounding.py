"""How inputs and weights of a layer are rounded to 8 bits: the range, the factors of the channels, the codes.

A channel of inputs may be multiplied by a factor and its column of weights divided by it: an outlier channel then no
longer makes the step of all others coarse (SmoothQuant, arXiv 2211.10438). Three choices are compared: no factors,
those that share the spread of the channels between inputs and weights, and the scales of columns that the codes of the
file have, with which these codes are exact. Of each, several ranges: clipping few large values may cost less than a
coarse step. What is compared is the squared error of the layer's outputs, errors of rounding taken for independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_RANGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the range that was seen."""
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Rounded:
    """codes: [rows, cols], whole numbers. scales: [rows]. channels: factors of the inputs, [channels]. step, zero: of
    the inputs that the factors have multiplied, from which `zero` steps are below 0. exact: whether the weights are
    those that were given. error: the squared error of an output vector, estimated."""

    codes: Tensor
    scales: Tensor
    channels: Tensor
    step: float
    zero: int
    exact: bool
    error: float


@dataclass(frozen=True, eq=False)
class Given:
    """A layer's weights and inputs. weight: [out, in / groups * kernel]. rows: some of its inputs, [n, in]. low, high:
    the least and the largest of each channel, [in]. exact: codes, scales of rows and of columns of the weight, or None.
    groups: of channels."""

    weight: Tensor
    rows: Tensor
    low: Tensor
    high: Tensor
    exact: tuple[Tensor, Tensor, Tensor | None] | None
    groups: int

    def by_channel(self, matrix: Tensor) -> Tensor:
        """[out, in / groups * kernel] as [groups, out / groups, in / groups, kernel]."""
        inputs = len(self.low) // self.groups
        return matrix.reshape(self.groups, matrix.shape[0] // self.groups, inputs, -1)

    @property
    def energy(self) -> Tensor:
        """Of the weights of each channel, [in]."""
        return self.by_channel(self.weight).square().sum((1, 3)).reshape(-1)

    def times(self, matrix: Tensor, channels: Tensor) -> Tensor:
        """A matrix like the weight, the columns of each channel multiplied by its factor."""
        factors = channels.view(self.groups, 1, -1, 1)
        return (self.by_channel(matrix) * factors).reshape(matrix.shape)


def rounded(layers: Sequence[Given], largest: int) -> list[Rounded]:
    """The way to round with the least error, for layers that all read the same inputs: one for all of them, so that
    these are rounded once. largest: magnitude of a code."""
    kept = [_kept(given, largest) for given in layers]
    factors = [own[2] for own in kept if own is not None]
    made = [
        _best_range(layers, channels, [_coded(*pair, channels, largest) for pair in zip(layers, kept, strict=True)])
        for channels in (*factors, torch.ones_like(layers[0].low), smooth(layers))
    ]
    return min(made, key=lambda each: sum(one.error for one in each))


@dataclass(frozen=True, eq=False)
class _Coded:
    """codes: [rows, cols]; scales: [rows]; exact: whether they are the weight itself."""

    codes: Tensor
    scales: Tensor
    exact: bool


def _coded(given: Given, kept: tuple[Tensor, Tensor, Tensor] | None, channels: Tensor, largest: int) -> _Coded:
    """The codes of a layer whose inputs are multiplied by these factors: those that it has, where they fit."""
    if kept is not None and torch.equal(kept[2], channels):
        return _Coded(kept[0], kept[1], True)
    return _Coded(*codes_of(given.times(given.weight, 1 / channels), largest), False)


def codes_of(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Codes [rows, cols] of a matrix rounded to nearest, a scale for each row [rows]."""
    scales = weight.abs().amax(1).clamp_min(_TINY) / largest
    return (weight / scales[:, None]).round_().clamp_(-largest, largest), scales


def _kept(given: Given, largest: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The codes that the weight has already, where they are small and their columns have one scale in each channel."""
    if given.exact is None or int(given.exact[0].abs().max()) > largest:
        return None
    codes, scales, columns = given.exact
    if columns is None:
        return codes, scales, torch.ones_like(given.low)
    if given.groups > 1 and not bool((columns == columns[0]).all()):
        return None
    each = columns.view(len(given.low) // given.groups, -1)
    if not bool((each == each[:, :1]).all()) or not bool((each > 0).all()):
        return None
    return codes, scales, each[:, 0].repeat(given.groups)


def smooth(layers: Sequence[Given]) -> Tensor:
    """Factors [in] that share the spread of the channels evenly between inputs and weights; their mean logarithm is
    zero. A channel without inputs or weights keeps 1."""
    inputs = torch.maximum(layers[0].low.abs(), layers[0].high.abs())
    each = [given.by_channel(given.weight).abs().amax((1, 3)).reshape(-1) for given in layers]
    weights = torch.stack(each).amax(0)
    alive = (inputs > _TINY) & (weights > _TINY)
    logs = torch.where(alive, (weights.clamp_min(_TINY) / inputs.clamp_min(_TINY)).log() / 2, 0.0)
    logs = torch.where(alive, logs - logs.sum() / alive.sum().clamp_min(1), 0.0)
    return logs.exp()


def _best_range(layers: Sequence[Given], channels: Tensor, coded: Sequence[_Coded]) -> list[Rounded]:
    """The range with the least error of all layers together."""
    first = layers[0]
    base = [_lost(given, channels, own) for given, own in zip(layers, coded, strict=True)]
    low = min(0.0, float((first.low * channels).min()))
    high = max(0.0, float((first.high * channels).max()))
    energy = torch.stack([given.energy for given in layers]) / channels.square()
    scaled = first.rows * channels
    best: tuple[list[float], float, int] | None = None
    for share in _RANGES:
        step = max(share * (high - low), _TINY) / 255
        zero = round(-share * low / step)
        integers = (scaled / step).add_(zero + 0.5).floor_().clamp_(0, 255)
        square = (integers.sub_(zero).mul_(step) - scaled).square().mean(0)
        errors = [own + float(square @ each) for own, each in zip(base, energy, strict=True)]
        if best is None or sum(errors) < sum(best[0]):
            best = (errors, step, zero)
    assert best is not None  # there are ranges
    return [
        Rounded(own.codes, own.scales, channels, best[1], best[2], own.exact, error)
        for own, error in zip(coded, best[0], strict=True)
    ]


def _lost(given: Given, channels: Tensor, own: _Coded) -> float:
    """The squared error of an output vector from the codes of the weights."""
    if own.exact:
        return 0.0
    back = given.times(own.codes * own.scales[:, None], channels)
    lost = given.by_channel(back - given.weight).square().sum((1, 3)).reshape(-1)
    return float(lost @ given.rows.square().mean(0))


def error_by_token(given: Given, channels: Tensor) -> float:
    """The squared error of an output vector from rounding each input vector to 8 bits by its own range."""
    scaled = given.rows * channels
    units = scaled.abs().amax(1, keepdim=True).clamp_min(_TINY) / 127
    return float(((scaled / units).round() * units - scaled).square().mean(0) @ (given.energy / channels.square()))
