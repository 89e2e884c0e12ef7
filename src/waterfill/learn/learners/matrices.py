"""A weight that is learned and compressed in turns: its value, the parts nearest to it, and what ties the two."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from waterfill.compression.allocation.weight import Weight
from waterfill.errors import BadInput
from waterfill.importance import Importance
from waterfill.learn.learners.vectors import can_be_learned
from waterfill.model.entry import Entry, decode, encode
from waterfill.network.kept import BINARY
from waterfill.part import Part
from waterfill.parts import Dense


@dataclass(eq=False)
class LearnedWeight:
    """One weight of a network under the LC algorithm.

    owner: the module that has it, as `attribute`. importance: the metric, the same for each matrix. parts: of the last
    C step, and blob: their bytes. compressed: D(theta), what they restore, and multiplier: lambda, both like `value`.
    """

    weight: Weight
    owner: nn.Module
    attribute: str
    importance: Importance
    parts: tuple[Part, ...] = ()
    blob: bytes = b""
    compressed: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu"))
    multiplier: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu"))

    def __post_init__(self) -> None:
        self.compressed = self.value.detach().clone()
        self.multiplier = torch.zeros_like(self.value.detach())

    @property
    def name(self) -> str:
        """Of the parameter in the network."""
        return self.weight.name

    @property
    def value(self) -> nn.Parameter:
        """The network's own parameter, whatever was put in its place since."""
        value: nn.Parameter = getattr(self.owner, self.attribute)
        return value

    def gap(self) -> Tensor:
        """w - D(theta), through which gradients run."""
        return self.value - self.compressed.to(self.value)

    def penalty(self, mu: float) -> Tensor:
        """mu/2 ||w - D(theta) - lambda/mu||^2, a scalar."""
        errors = self.gap() - self.multiplier.to(self.value) / mu
        return mu * self._energy(errors.float().reshape(self.weight.layout.count, *self.weight.layout.matrix))

    def _energy(self, errors: Tensor) -> Tensor:
        """1/2 sum_o rows_o E_o A E_o^T of errors [count, rows, cols]: `Importance.distortion` with gradients."""
        metric = self.importance
        if metric.gram is None:
            weighted = errors * metric.diagonal.to(errors)
        else:
            gram = metric.gram.to(errors)
            weighted = (errors.reshape(*errors.shape[:2], -1, len(gram)) @ gram).reshape(errors.shape)
        return 0.5 * ((errors * weighted).sum(-1) * metric.rows.to(errors)).sum()

    def fit(self, mu: float, price: float) -> bytes:
        """theta = argmin of mu/2 ||w - lambda/mu - D(theta)||^2 + price * bits, from what it was; its bytes.

        Raises BadInput for values that are not finite.
        """
        layout, spec = self.weight.layout, self.weight.spec
        target = self.value.detach() - self.multiplier.to(self.value) / mu
        if not bool(torch.isfinite(target).all()):
            raise BadInput(f"{self.name!r} has values that are not finite after training; lower the learning rate")
        targets = layout.split(target.cpu())
        starts = self.parts or (None,) * len(targets)
        metric = self.importance.scaled(mu)
        self._take(tuple(spec.fit(t, metric, price, start) for t, start in zip(targets, starts, strict=True)))
        self.blob = encode(self.parts)
        return self.blob

    def adopt(self, blob: bytes) -> None:
        """Have the parts of a blob, if it is another than their own."""
        if blob != self.blob:
            self._take(decode(blob, self.weight.layout, self.name))
            self.blob = blob

    def _take(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.compressed = self.weight.layout.join([part.dense() for part in parts]).to(self.value)

    def entry(self) -> Entry:
        """The parts of the last C step, their error measured from the learned value."""
        norm = float(self.value.detach().double().norm())
        error = float(self.gap().detach().double().norm()) / norm if norm > 0 else 0.0
        return Entry(self.name, self.weight.layout, self.parts, self.blob, "", error)


def learned_weights(
    weights: Iterable[Weight], model: nn.Module, importance: Callable[[Weight], Importance]
) -> list[LearnedWeight]:
    """Those of the weights that are to be compressed and that are parameters in training.

    One that is zeros and ones now, such as an identity, will not be after training.
    """
    trained = {name for name, value in model.named_parameters(remove_duplicate=False) if can_be_learned(value)}
    found = []
    for weight in weights:
        own = replace(weight, kept="") if weight.kept == BINARY else weight
        if weight.name in trained and weight.spec != Dense() and not own.reason:
            owner, _, attribute = weight.name.rpartition(".")
            found.append(LearnedWeight(own, model.get_submodule(owner), attribute, importance(own)))
    return found
