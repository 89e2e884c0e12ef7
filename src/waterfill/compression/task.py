"""One compression under way."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.compression.allocation.budget import Budget, unused
from waterfill.compression.allocation.fitter import FIXED_RATE_PRICE, Fitter
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.costs.assumptions import informed
from waterfill.compression.costs.few import leaning
from waterfill.compression.costs.unreached import at_common_price
from waterfill.compression.options import Options
from waterfill.errors import BadInput, BadRecipe
from waterfill.importance import Importance, ImportanceMap
from waterfill.model.compressed import CompressedModel, count_weights
from waterfill.model.entry import Entry
from waterfill.network.kept import BINARY, why_kept
from waterfill.network.layout import RAW, Layout, layout_of
from waterfill.network.pruned import hidden_in
from waterfill.network.tensors import constants_of, foreign_names, tensors_of
from waterfill.part import Spec
from waterfill.parts import Dense
from waterfill.recipe import as_spec

LOSSLESS = "lossless"
"""What stands for a recipe where every bit is kept."""
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
    streamed = isinstance(importance, ImportanceMap) and importance.streamed
    load = {name: partial(_on_cpu, value) for name, value in tensors.items()}
    masks = hidden_in(load)
    weights = []
    for name, value in tensors.items():
        kept = why_kept(name, value, constant=name in constants, measured=name in importance)
        layout = layout_of(tuple(value.shape), value.dtype, RAW if kept not in ("", BINARY) else roles.get(name))
        weight = Weight(name, layout, spec, load[name], _reader(importance, name), streamed)
        weight.check()
        weights.append(replace(weight, importance=None, kept=kept) if kept else replace(weight, mask=masks.get(name)))
    weights = informed(weights)
    return at_common_price(leaning(weights, importance.samples)) if isinstance(importance, ImportanceMap) else weights


def _reader(importance: Mapping[str, Importance], name: str) -> Callable[[], Importance] | None:
    """What reads the importance of a tensor, in memory or where it lies on disk; None where there is none."""
    return partial(importance.__getitem__, name) if name in importance else None


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu()


def lossless_weights(tensors: Mapping[str, Tensor]) -> list[Weight]:
    """Every tensor as it is, bit for bit. Raises BadInput for what no file can hold."""
    exact = Dense(format="lossless")
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
    options: Options

    @classmethod
    def of(
        cls,
        model: "nn.Module | Mapping[str, Tensor]",
        spec: "Spec | str",
        importance: Mapping[str, Importance] | None,
        options: Options,
    ) -> "Compression":
        """Nothing fitted yet; the spec `LOSSLESS` keeps every bit. Raises BadInput, BadRecipe."""
        tensors, aliases, roles = tensors_of(model)
        original = sum(t.numel() * t.element_size() for t in tensors.values())
        notes: dict[str, Any] = {
            "recipe": spec,
            "original": original,
        }  # in the order of `compress_file`: no byte differs
        module = model if isinstance(model, nn.Module) else None
        warnings = dict.fromkeys(foreign_names(module) if module is not None else (), _FOREIGN)
        if spec == LOSSLESS:
            weights = lossless_weights(tensors)
        else:
            parsed = as_spec(spec)
            constants = constants_of(module) if module is not None else ()
            weights = plan_weights(tensors, parsed, roles, importance, constants)
            notes["recipe"] = repr(parsed)
            kept = {weight.name for weight in weights if weight.kept}
            told = importance.warnings if isinstance(importance, ImportanceMap) else {}
            warnings |= {name: text for name, text in told.items() if name not in kept}
        return cls(weights, {}, aliases, notes | ({"warnings": warnings} if warnings else {}), options)

    @property
    def original(self) -> int:
        """Bytes of the tensors as they were."""
        return int(self.notes["original"])

    def fit(self, i: int, price: float) -> float:
        """Fit weight i at a price and keep its entry; real bits."""
        self.entries[i] = self.weights[i].fit(price)
        return 8.0 * len(self.entries[i].blob)

    def model(self) -> CompressedModel:
        """What there is so far, with empty entries for weights that are not fitted yet."""
        filled = [self.entries.get(i) or Entry(w.name, w.layout, (), b"", w.reason) for i, w in enumerate(self.weights)]
        return CompressedModel({entry.name: entry for entry in filled}, self.aliases, self.notes)

    def allowed(self, budget: Budget) -> int | None:
        """The size that the file may have; None where a price decides."""
        return budget.file_bytes(count_weights((w.name, w.layout) for w in self.weights), self.original)

    @cached_property
    def run(self) -> Fitter:
        """What fits the weights to a budget."""
        threads = self.options.threads or min(2, torch.get_num_threads())
        return Fitter(
            self.weights, self.fit, lambda lengths: self.model().overhead(lengths), self.options.progress, threads
        )


def with_remark(model: CompressedModel, size: int | None) -> CompressedModel:
    """The model; where it leaves much of the `size` bytes that it may have, its notes say so, if that fits."""
    remark = None if size is None else unused(size, model.size)
    if size is None or remark is None:
        return model
    remarked = replace(model, notes=model.notes | {"budget": remark})
    return remarked if remarked.size <= size else model


def resolve(budget: Budget, spec: "Spec | str") -> Budget:
    """The budget to work to: the default where none was given. Raises BadRecipe for a budget that makes no sense."""
    if spec == LOSSLESS:
        if budget.given:
            raise BadRecipe("lossless takes what it takes: give no budget with it")
        return Budget(price=FIXED_RATE_PRICE)
    if budget.given:
        return budget
    return Budget(price=FIXED_RATE_PRICE) if as_spec(spec).fixed_rate else Budget(bits=DEFAULT_BITS)
