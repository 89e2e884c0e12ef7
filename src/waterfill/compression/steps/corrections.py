"""Corrections by small tensors: for each kind, the fit of one layer and the layers that it applies to.

A fit gets a layer's inputs and outputs in the reference network and in the compressed one, which runs with the
corrections of the layers before already in place, and finds the values that bring the second closest to the first.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from waterfill.network.batch_norm import BATCH_NORM, LAYERS, along, output_axis

_KNOWN = (*BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_ANY = 1e-6
_ZERO_VARIANCE = 1e-10  # of the mean square; a channel of less variance is constant


class Fit(Protocol):
    """The fit of one layer, batch by batch."""

    def reference(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """The layer has run in the reference network."""

    def compressed(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The layer has run in the compressed network; its output with the values fitted so far."""

    def values(self, module: Any) -> dict[str, Tensor]:
        """The corrected tensors of the layer, by attribute."""


@dataclass(frozen=True)
class Kind:
    """A kind of correction: its name, the layers that it applies to, a new fit, and whether it changes only vectors."""

    what: str
    applies: Callable[[nn.Module], bool]
    fit: Callable[[], Fit]
    vectors: bool = True


class Linewise:
    """Output channel o of the compressed network as a_o * output + b_o, by least squares to the reference's.

    scale: whether a is free; else it is 1. b is free where the layer has a bias; else it is 0.
    """

    def __init__(self, scale: bool) -> None:
        self.scale = scale
        self._shift = True
        self._axes: dict[nn.Module, int | None] = {}
        self._expected: deque[Tensor] = deque()  # outputs of the reference
        self._count = 0
        self._sums: Tensor | None = None  # [4, channels]: actual, expected, actual^2, actual * expected

    def reference(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._expected.append(output.clone())  # layers that follow may write into it

    def compressed(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        self._shift = isinstance(getattr(module, "bias", None), Tensor)
        if module not in self._axes:
            self._axes[module] = channel_axis(module, inputs, output)
        axis, target = self._axes[module], self._expected.popleft() if self._expected else None
        if axis is None or target is None or target.shape != output.shape:
            return output
        actual, expected = (_by_channel(value, axis) for value in (output, target))
        sums = torch.stack([actual.sum(1), expected.sum(1), actual.square().sum(1), (actual * expected).sum(1)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += actual.shape[1]
        a, b = (along(value, axis, output.ndim).to(output.dtype) for value in self._solve())
        return output * a + b

    def values(self, module: Any) -> dict[str, Tensor]:
        if self._sums is None:
            return {}
        a, b = self._solve()
        bias = getattr(module, "bias", None)
        changed = {}
        if self.scale:
            axis = output_axis(module) if isinstance(module, LAYERS) else 0
            changed["weight"] = module.weight.double() * along(a, axis, module.weight.ndim)
        if bias is not None:
            changed["bias"] = bias.double() * a + b
        return changed

    def _solve(self) -> tuple[Tensor, Tensor]:
        """a and b, each [channels]."""
        assert self._sums is not None
        actual, expected, square, product = self._sums / max(1, self._count)
        one, zero = torch.ones_like(actual), torch.zeros_like(actual)
        if not self.scale:
            return one, expected - actual
        energy, common = (square - actual**2, product - actual * expected) if self._shift else (square, product)
        varies = energy > _ZERO_VARIANCE * square
        a = torch.where(varies, common / torch.where(varies, energy, one), one)
        return a, (expected - a * actual if self._shift else zero)


class Statistics:
    """Running mean and variance of a batch norm from its inputs.

    difference: corrected by the change that compression made, mean + (compressed - reference) and
    var * compressed / reference, both measured on the same inputs; else replaced by those of the compressed network.
    """

    def __init__(self, difference: bool) -> None:
        self.difference = difference
        self._axes: dict[nn.Module, int | None] = {}
        self._sums: list[Tensor | None] = [None, None]  # reference, compressed: [3, channels] of 1, x, x^2

    def _add(self, which: int, module: Any, inputs: tuple[Any, ...], output: Tensor) -> int | None:
        """Add the inputs of a norm; their channel dimension, or None if there is none."""
        if module not in self._axes:
            same = bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].shape == output.shape
            self._axes[module] = channel_axis(module, inputs, output) if same else None
        axis = self._axes[module]
        if axis is None:
            return None
        x = _by_channel(inputs[0], axis)
        sums = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])
        known = self._sums[which]
        self._sums[which] = sums if known is None else known + sums
        return axis

    def _moments(self, which: int) -> tuple[Tensor, Tensor]:
        sums = self._sums[which]
        assert sums is not None
        mean = sums[1] / sums[0]
        var = (sums[2] / sums[0] - mean**2).clamp_min(0) * sums[0] / (sums[0] - 1).clamp_min(1)
        return mean, var

    def reference(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._add(0, module, inputs, output)

    def compressed(self, module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        axis = self._add(1, module, inputs, output)
        if axis is None or self._sums[0] is None:
            return output
        mean, var = (value.to(module.running_mean.dtype) for value in self._corrected(module))  # autocast casts outputs
        x = inputs[0].movedim(axis, 1)
        x = F.batch_norm(x, mean, var, module.weight, module.bias, False, 0.0, module.eps)
        return x.movedim(1, axis)

    def values(self, module: Any) -> dict[str, Tensor]:
        if any(sums is None for sums in self._sums):
            return {}
        mean, var = self._corrected(module)
        return {"running_mean": mean, "running_var": var}

    def _corrected(self, module: Any) -> tuple[Tensor, Tensor]:
        mean, var = self._moments(1)
        if not self.difference:
            return mean, var
        old_mean, old_var = module.running_mean.double(), module.running_var.double()
        reference_mean, reference_var = self._moments(0)
        varies = reference_var > _ZERO_VARIANCE * old_var + torch.finfo(torch.float64).tiny
        ratio = torch.where(
            varies, var / torch.where(varies, reference_var, torch.ones_like(var)), torch.ones_like(var)
        )
        return old_mean + mean - reference_mean, old_var * ratio


def channel_axis(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int | None:
    """The channel dimension of a layer's outputs, along which its bias or weight is indexed; None if there is none.

    Found by changing the entries of one channel: the class of a layer does not show it, and sizes may be equal by
    chance.
    """
    vector = next((v for v in (getattr(module, "bias", None), module.weight) if isinstance(v, Tensor)), None)
    if vector is None or not isinstance(inputs, tuple) or output.ndim == 0:
        return None
    at = 0 if vector.ndim == 1 or not isinstance(module, LAYERS) else output_axis(module)
    channels = vector.shape[at]
    with torch.no_grad():
        kept = vector.detach().clone()
        try:
            vector.select(at, channels - 1).add_(kept.abs().max() + output.abs().max() + _ANY)
            moved = module.forward(*inputs)
        except Exception:  # a layer with keywords, or one that cannot be run twice
            return None
        finally:
            vector.copy_(kept)
    if not isinstance(moved, Tensor) or moved.shape != output.shape:
        return None
    changed = moved != output
    for axis in (dim for dim in range(output.ndim) if output.shape[dim] == channels):
        if bool(changed.any()) and not bool(changed.narrow(axis, 0, channels - 1).any()):
            return axis
    return None


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes and then multiplies each channel by its entry of `weight`: those of PyTorch, and any
    whose class is called so and that holds vectors only."""
    weight = getattr(module, "weight", None)
    named = isinstance(module, _KNOWN) or "norm" in type(module).__name__.lower()
    own = [p for p in module.parameters(recurse=False)]
    return named and isinstance(weight, Tensor) and bool(own) and all(p.ndim == 1 for p in own)


def _by_channel(values: Tensor, axis: int) -> Tensor:
    """[channels, all else], float64."""
    return values.detach().double().movedim(axis, 0).flatten(1) if values.ndim > 1 else values.double()[:, None]


def _has_bias(module: nn.Module) -> bool:
    return (isinstance(module, LAYERS) or is_norm(module)) and isinstance(getattr(module, "bias", None), Tensor)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORM) and module.running_mean is not None


def _can_scale(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) and not (output_axis(module) and getattr(module, "groups", 1) != 1)


def _runs_alone(module: nn.Module) -> bool:
    """Whether calling the module is what applies its weight: hooks of a projection inside attention never run."""
    return not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


BIAS = Kind("bias correction", lambda m: _has_bias(m) and _runs_alone(m), lambda: Linewise(scale=False))
KINDS = (
    Kind("normalization statistics, moved by the difference", _has_statistics, lambda: Statistics(True)),
    BIAS,
    Kind("normalization scale and shift", is_norm, lambda: Linewise(scale=True)),
    Kind("output scales", lambda m: _can_scale(m) and _runs_alone(m), lambda: Linewise(scale=True), vectors=False),
    Kind("normalization statistics, measured anew", _has_statistics, lambda: Statistics(False)),
)
"""Every kind, in the order in which they are tried: those that help most often first."""


def fits_of(kind: Kind, layers: Mapping[str, nn.Module]) -> dict[str, Fit]:
    """A fit for each layer; layers that share a tensor share a fit, as the tensor can have one new value only."""
    fits: dict[str, Fit] = {}
    known: dict[int, Fit] = {}
    for name, module in layers.items():
        own = [id(value) for value in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        fits[name] = next((known[tensor] for tensor in own if tensor in known), None) or kind.fit()
        known.update(dict.fromkeys(own, fits[name]))
    return fits
