"""The scales of the norms after the last block, corrected for what the blocks before have lost.

Within blocks each matrix is fitted to what it really gets. What the last norm gives an output matrix that is fitted
before, as one that is also the embedding, nothing else corrects.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.compression.steps.corrections import is_norm
from waterfill.network.running.forward import hooked

_PRIOR = 1e-2  # of a channel's energy, that counts for no change
_HALVES = ((0, 1), (1, 0))
_OFFSETS = 0.0, 1.0  # of the weight of a norm, to what it multiplies by
_CLOSE = 1e-2  # of the outputs: a norm may compute in a narrow type


@dataclass(frozen=True, eq=False)
class Ending:
    """What runs after the last block. model: the network. run: (number of a batch, called when the block has run)."""

    model: nn.Module
    run: Callable[[int, Callable[[], None]], object]


class _AllRan(Exception):
    """Every norm has run; the rest of the network, its outputs, need not."""


@dataclass(eq=False)
class _Channels:
    """By halves of the inputs: energies of a norm's outputs, and their products with what they lack, [channels]."""

    own: list[Any] = field(default_factory=lambda: [0.0, 0.0])
    lacking: list[Any] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, half: int, original: Tensor, compressed: Tensor) -> None:
        before, now = (y.detach().double().reshape(-1, y.shape[-1]).cpu() for y in (original, compressed))
        self.own[half] = self.own[half] + now.square().sum(0)
        self.lacking[half] = self.lacking[half] + ((before - now) * now).sum(0)

    def factors(self) -> Tensor | None:
        """Of the channels, [channels] float64: their least squares, less far from 1 where one half denies the other."""
        if not all(isinstance(one, Tensor) for one in self.own):
            return None
        gain = cost = 0.0
        for fit, held in _HALVES:
            change = _change(self.lacking[fit], self.own[fit])
            gain += float((change * self.lacking[held]).sum())
            cost += float((change.square() * self.own[held]).sum())
        share = min(max(gain / cost, 0.0), 1.0) if cost > 0 else 0.0
        return 1 + share * _change(sum(self.lacking), sum(self.own))


def _change(lacking: Tensor, own: Tensor) -> Tensor:
    return lacking / ((1 + _PRIOR) * own).clamp_min(torch.finfo(torch.float64).tiny)


def corrected(original: Ending, compressed: Ending, batches: int) -> dict[str, Tensor]:
    """New tensors of the norms that run after the last block, by name, in the shape and type of the original's.

    The norms of both networks have the original's tensors.
    """
    names = [name for name, module in original.model.named_modules() if is_norm(module)]
    first = _runs(original, names, 0) if names else {}
    sums = {name: _Channels() for name in first}
    for j in range(batches if first else 0):
        before, after = (_runs(ending, list(first), j, stop=True) for ending in (original, compressed))
        for name in before.keys() & after.keys():
            if before[name][1].shape == after[name][1].shape:
                sums[name].add(j % 2, before[name][1], after[name][1])
    found: dict[str, Tensor] = {}
    for name, channels in sums.items():
        factors = channels.factors()
        if factors is not None:
            values = _scaled(original.model.get_submodule(name), *first[name], factors)
            found |= {f"{name}.{key}": value for key, value in values.items()}
    return found


def _runs(
    ending: Ending, names: Sequence[str], batch: int, *, stop: bool = False
) -> dict[str, tuple[tuple[Any, ...], Tensor]]:
    """The arguments and outputs of those of some norms that run after the last block. stop: whether the rest need not
    run."""
    seen: dict[str, tuple[tuple[Any, ...], Tensor]] = {}
    reached: list[bool] = []

    def see(name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if reached and isinstance(output, Tensor) and output.ndim > 1:
            seen[name] = inputs, output.clone()
        if stop and len(seen) == len(names):
            raise _AllRan

    with hooked({name: ending.model.get_submodule(name) for name in names}, see), suppress(_AllRan):
        ending.run(batch, lambda: reached.append(True))
    return seen


def _scaled(module: nn.Module, inputs: tuple[Any, ...], output: Tensor, factors: Tensor) -> dict[str, Tensor]:
    """The tensors with which a norm gives its outputs times these factors; none where neither way gives them.

    Some norms multiply by their weight, some by one more than it.
    """
    factors = factors.to(output.device)
    wanted = output.double() * factors
    for offset in _OFFSETS:
        made = copy.deepcopy(module)
        own = {key: value for key, value in made.named_parameters(recurse=False) if value.shape == factors.shape}
        for key, value in own.items():
            shift = offset if key == "weight" else 0.0
            value.data = ((value.detach().double() + shift) * factors - shift).to(value.dtype)
        gap = made(*inputs).double() - wanted
        if float(gap.norm()) <= _CLOSE * float(wanted.norm()):
            return {key: value.detach().cpu() for key, value in own.items()}
    return {}
