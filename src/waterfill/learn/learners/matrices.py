"""A weight that is learned and compressed in turns: its value, the parts nearest to it, and what ties the two."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from waterfill.compression.allocation.weight import Weight
from waterfill.importance import Importance
from waterfill.model.entry import Entry, decode, encode
from waterfill.network.layout import Layout
from waterfill.part import Part
from waterfill.parts import Dense


@dataclass(eq=False)
class LearnedWeight:
    """One weight of a network under the LC algorithm.

    value: the network's own parameter. importance: the metric, the same for each matrix. parts: of the last C step,
    and blob: their bytes. compressed: D(theta), what they restore, and multiplier: lambda, both like `value`.
    """

    weight: Weight
    value: nn.Parameter
    importance: Importance
    parts: tuple[Part, ...] = ()
    blob: bytes = b""
    compressed: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu"))
    multiplier: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu"))

    def __post_init__(self) -> None:
        self.compressed = self.value.detach().clone()
        self.multiplier = torch.zeros_like(self.value.detach())
        self._metric = _metric(self.importance, self.value)

    def gap(self) -> Tensor:
        """w - D(theta), through which gradients run."""
        return self.value - self.compressed

    def penalty(self, mu: float) -> Tensor:
        """mu/2 ||w - D(theta) - lambda/mu||^2, a scalar."""
        return mu * self._metric(_matrices(self.gap() - self.multiplier / mu, self.weight.layout))

    def fit(self, mu: float, price: float) -> bytes:
        """theta = argmin of mu/2 ||w - lambda/mu - D(theta)||^2 + price * bits, from what it was; its bytes."""
        layout, spec = self.weight.layout, self.weight.spec
        targets = layout.split((self.value.detach() - self.multiplier / mu).cpu())
        starts = self.parts or (None,) * len(targets)
        metric = self.importance.scaled(mu)
        self._take(tuple(spec.fit(t, metric, price, start) for t, start in zip(targets, starts, strict=True)))
        self.blob = encode(self.parts)
        return self.blob

    def adopt(self, blob: bytes) -> None:
        """Have the parts of a blob, if it is another than their own."""
        if blob != self.blob:
            self._take(decode(blob, self.weight.layout, self.weight.name))
            self.blob = blob

    def _take(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.compressed = self.weight.layout.join([part.dense() for part in parts]).to(self.value)

    def entry(self) -> Entry:
        """The parts of the last C step, their error measured from the learned value."""
        norm = float(self.value.detach().double().norm())
        error = float(self.gap().detach().double().norm()) / norm if norm > 0 else 0.0
        return Entry(self.weight.name, self.weight.layout, self.parts, self.blob, "", error)


def learned_weights(
    weights: Iterable[Weight], model: nn.Module, importance: Callable[[Weight], Importance]
) -> list[LearnedWeight]:
    """Those of the weights that are to be compressed and that are parameters in training."""
    values = dict(model.named_parameters(remove_duplicate=False))
    return [
        LearnedWeight(weight, values[weight.name], importance(weight))
        for weight in weights
        if not weight.reason
        and weight.spec != Dense()
        and weight.name in values
        and values[weight.name].requires_grad
        and not weight.layout.dtype.is_complex
    ]


def _matrices(value: Tensor, layout: Layout) -> Tensor:
    """The matrices [count, rows, cols] of a tensor, float32; gradients run through."""
    return value.float().reshape(layout.count, *layout.matrix)


def _metric(importance: Importance, value: Tensor) -> Callable[[Tensor], Tensor]:
    """1/2 sum_o rows_o E_o A E_o^T of errors [count, rows, cols]: `Importance.distortion` with gradients."""
    rows, diagonal = importance.rows.to(value), importance.diagonal.to(value)
    gram = None if importance.gram is None else importance.gram.to(value)

    def energy(errors: Tensor) -> Tensor:
        if gram is None:
            weighted = errors * diagonal
        else:
            weighted = (errors.reshape(*errors.shape[:2], -1, len(gram)) @ gram).reshape(errors.shape)
        return 0.5 * ((errors * weighted).sum(-1) * rows).sum()

    return energy
