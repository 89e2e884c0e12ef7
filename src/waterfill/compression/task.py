"""One compression under way."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from waterfill import recipe
from waterfill.compression.allocation.budget import Target
from waterfill.compression.allocation.fitter import FIXED_RATE_PRICE, Run
from waterfill.compression.allocation.unreached import at_common_price
from waterfill.compression.allocation.weight import Weight
from waterfill.errors import BadInput, BadRecipe
from waterfill.importance import Importance, Measured
from waterfill.model.compressed import CompressedModel, count_weights
from waterfill.model.entry import Entry
from waterfill.network.kept import BINARY, why_kept
from waterfill.network.layout import RAW, Layout, layout_of
from waterfill.network.pruned import hidden_in
from waterfill.network.tensors import constants_of, foreign_names, tensors_of
from waterfill.part import Spec
from waterfill.progress import Progress

_FOREIGN = "an extra state that is no tensor: not in the file; a module that this is loaded into keeps its own"
DEFAULT_BITS = 4.0
"""Bits per weight where no budget is given."""


def plan_weights(
    tensors: Mapping[str, Tensor],
    spec: Spec,
    roles: Mapping[str, str],
    importance: Mapping[str, Importance] | None,
    constants: Container[str] = (),
) -> list[Weight]:
    """A `Weight` for every tensor; `constants` are kept bit for bit where they have no importance.

    Raises BadInput for importance that names no tensor or does not fit it, and for NaN.
    """
    importance = {} if importance is None else importance
    unknown = sorted(set(importance) - set(tensors))
    if unknown:
        raise BadInput(f"importance is given for {unknown[0]!r}, which is not a tensor of the model")
    load = {name: partial(_on_cpu, value) for name, value in tensors.items()}
    masks = hidden_in(load)
    weights = []
    for name, value in tensors.items():
        kept = why_kept(name, value, constant=name in constants, measured=name in importance)
        layout = layout_of(tuple(value.shape), value.dtype, RAW if kept not in ("", BINARY) else roles.get(name))
        given = None if kept else _given(importance, name)
        weights.append(Weight(name, layout, spec, load[name], given, kept=kept, mask=None if kept else masks.get(name)))
        weights[-1].check()
    return at_common_price(weights) if isinstance(importance, Measured) else weights


def _given(importance: Mapping[str, Importance], name: str) -> Importance | Callable[[], Importance] | None:
    """The importance of a tensor, or what reads it where it lies on disk."""
    if name not in importance:
        return None
    streamed = isinstance(importance, Measured) and importance.streamed
    return partial(importance.__getitem__, name) if streamed else importance[name]


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu()


def lossless_weights(tensors: Mapping[str, Tensor]) -> list[Weight]:
    """Every tensor as it is, bit for bit. Raises BadInput for what no file can hold."""
    exact = recipe.parse('Dense(format="lossless")')
    weights = [
        Weight(name, Layout(tuple(value.shape), value.dtype, RAW), exact, partial(_on_cpu, value))
        for name, value in tensors.items()
    ]
    for weight in weights:
        weight.check()
    return weights


@dataclass(frozen=True, eq=False)
class Compression:
    """A model in memory on its way: its weights, what they have become so far, and the run that fits them.

    entries: by the position of the weight. notes: what the file is to say of how it was made.
    """

    weights: list[Weight]
    entries: dict[int, Entry]
    aliases: dict[str, str]
    notes: dict[str, Any]
    progress: Callable[[Progress], None] | None

    @classmethod
    def of(
        cls,
        model: "nn.Module | Mapping[str, Tensor]",
        spec: "Spec | str",
        importance: Mapping[str, Importance] | None,
        progress: Callable[[Progress], None] | None,
    ) -> "Compression":
        """Nothing fitted yet; the spec "lossless" keeps every bit. Raises BadInput, BadRecipe."""
        tensors, aliases, roles = tensors_of(model)
        notes: dict[str, Any] = {"original": sum(t.numel() * t.element_size() for t in tensors.values())}
        module = model if isinstance(model, nn.Module) else None
        warnings = dict.fromkeys(foreign_names(module) if module is not None else (), _FOREIGN)
        if spec == "lossless":
            weights = lossless_weights(tensors)
            notes["recipe"] = spec
        else:
            parsed = recipe.parse(spec) if isinstance(spec, str) else spec
            constants = constants_of(module) if module is not None else ()
            weights = plan_weights(tensors, parsed, roles, importance, constants)
            notes["recipe"] = repr(parsed)
            kept = {weight.name for weight in weights if weight.kept}
            told = importance.warnings if isinstance(importance, Measured) else {}
            warnings |= {name: text for name, text in told.items() if name not in kept}
        return cls(weights, {}, aliases, notes | ({"warnings": warnings} if warnings else {}), progress)

    @property
    def original(self) -> int:
        """Bytes of the tensors as they were."""
        return int(self.notes["original"])

    def fit(self, i: int, price: float) -> float:
        """Fit weight i at a price and keep its entry; real bits."""
        weight, fitted = self.weights[i], self.weights[i].fit(price)
        self.entries[i] = Entry(weight.name, weight.layout, fitted.parts, weight.reason, fitted.error)
        vars(self.entries[i])["blob"] = fitted.blob
        return 8.0 * len(fitted.blob)

    def model(self) -> CompressedModel:
        """What there is so far, with empty entries for weights that are not fitted yet."""
        filled = [self.entries.get(i) or Entry(w.name, w.layout, (), w.reason) for i, w in enumerate(self.weights)]
        return CompressedModel({entry.name: entry for entry in filled}, self.aliases, self.notes)

    def allowed(self, target: Target) -> int | None:
        """The size that the file may have; None where a price decides."""
        return target.file_bytes(count_weights((w.name, w.layout) for w in self.weights), self.original)

    @cached_property
    def run(self) -> "Run":
        """What fits the weights to a target."""
        workers = min(2, torch.get_num_threads())
        return Run(self.weights, self.fit, lambda lengths: self.model().overhead(lengths), self.progress, workers)


def resolve(target: Target, spec: "Spec | str", lossless: bool) -> Target:
    """The budget to work to: the default where none was given. Raises BadRecipe for a budget that makes no sense."""
    given = any(v is not None for v in vars(target).values())
    if lossless:
        if given:
            raise BadRecipe("lossless takes what it takes: give no budget with it")
        return Target(price=FIXED_RATE_PRICE)
    if given:
        return target
    parsed = recipe.parse(spec) if isinstance(spec, str) else spec
    return Target(price=FIXED_RATE_PRICE) if parsed.fixed_rate else Target(bits=DEFAULT_BITS)
