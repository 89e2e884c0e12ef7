"""What is compressed, and the state of a compression: the same for a model in memory and for a checkpoint."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from waterfill.assignment import LOSSLESS, Assignment, Recipe
from waterfill.compression.allocation.budget import Budget, counted, unused
from waterfill.compression.allocation.fitter import FIXED_RATE_PRICE, Fitter
from waterfill.compression.allocation.held import as_held, format_in
from waterfill.compression.allocation.to_size.spend import Ledger
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.costs.assumptions import informed
from waterfill.compression.costs.few import toward_assumed
from waterfill.compression.costs.unreached import at_common_price
from waterfill.compression.options import Options
from waterfill.compression.store import MemoryStore, Store
from waterfill.errors import BadInput, BadRecipe
from waterfill.importance import Importance, ImportanceMap
from waterfill.model.compressed import CompressedModel, count_weights
from waterfill.model.entry import Entry, row_of
from waterfill.network.channels.sizes import NOTE, noted_sizes
from waterfill.network.kept import BINARY, IGNORED, why_kept
from waterfill.network.layout import RAW, Layout, can_be_rounded, layout_of
from waterfill.network.pruned import hidden_in
from waterfill.network.tensors import constants_of, foreign_names, tensors_of
from waterfill.part import Spec
from waterfill.parts import Dense, to_run
from waterfill.storage import size_of
from waterfill.storage.manifest import Manifest

_FOREIGN = "an extra state that is no tensor: not in the file; a module that this is loaded into keeps its own"
_UNFITTED = "quantized"  # the description of a weight until it is fitted
_MOST_THREADS = 2  # default of the threads for a model in memory
DEFAULT_BITS = 4.0
"""Bits per weight where no budget is given."""
EXACT = Dense(format=LOSSLESS)
"""The spec of tensors that are kept bit for bit."""


def recipe_of(
    recipe: "Recipe | Assignment | None", ignore: Sequence[str], lossless: bool, options: Options
) -> "Assignment | str":
    """The recipes of the tensors, or `LOSSLESS`. Raises BadRecipe."""
    if lossless and (ignore or options.runs):
        given = "ignore=" if ignore else f"runs={options.runs!r}"
        raise BadRecipe(f"lossless=True keeps every tensor bit for bit: leave {given} out")
    return LOSSLESS if lossless else running(Assignment.of(recipe, ignore), options)


def running(recipe: Assignment, options: Options) -> Assignment:
    """The recipes, such that the network can run as the options say. Raises BadRecipe."""
    how = options.runs
    return recipe if how is None else recipe.mapped(lambda spec: to_run(spec, how))


def kept_or_not(name: str, value: Tensor, spec: Spec | None, **known: bool) -> str:
    """Why a tensor is kept bit for bit, by its spec or as `why_kept` finds; empty if it is not. Raises BadInput."""
    if spec is None:
        return IGNORED if can_be_rounded(value.dtype) and value.numel() else ""
    return why_kept(name, value, **known)


def plan_weights(
    tensors: Mapping[str, Tensor],
    specs: Mapping[str, Spec | None],
    roles: Mapping[str, str],
    importance: Mapping[str, Importance] | None,
    constants: Container[str] = (),
) -> list[Weight]:
    """A `Weight` for every tensor; `constants` are kept bit for bit where they have no importance.

    specs: by name, None for a tensor that is kept bit for bit.
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
        spec = specs[name]
        kept = kept_or_not(name, value, spec, constant=name in constants, measured=name in importance)
        layout = layout_of(tuple(value.shape), value.dtype, RAW if kept not in ("", BINARY) else roles.get(name))
        weight = Weight(name, layout, spec or EXACT, load[name], _reader(importance, name), streamed)
        weight.check()
        weights.append(replace(weight, importance=None, kept=kept) if kept else replace(weight, mask=masks.get(name)))
    format = format_in(specs)
    weights = [replace(weight, format=format) for weight in informed(weights)]
    return (
        at_common_price(toward_assumed(weights, importance.samples))
        if isinstance(importance, ImportanceMap)
        else weights
    )


def _reader(importance: Mapping[str, Importance], name: str) -> Callable[[], Importance] | None:
    """A function that reads the importance of a tensor, from memory or disk; None where there is none."""
    return partial(importance.__getitem__, name) if name in importance else None


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu()


def lossless_weights(tensors: Mapping[str, Tensor]) -> list[Weight]:
    """A weight for every tensor, kept bit for bit. Raises BadInput for one that no file can hold."""
    weights = [
        Weight(name, Layout(tuple(value.shape), value.dtype, RAW), EXACT, partial(_on_cpu, value))
        for name, value in tensors.items()
    ]
    for weight in weights:
        weight.check()
    return weights


@dataclass(frozen=True, eq=False)
class Task:
    """All that is to be compressed, from a model or a checkpoint.

    weights: all tensors in order. aliases: by tied name, the one that holds the data. notes: of the file, how it was
    made; among them "original", the bytes of the original tensors.
    """

    weights: list[Weight]
    aliases: Mapping[str, str]
    notes: dict[str, Any]

    @classmethod
    def of(
        cls,
        model: "nn.Module | Mapping[str, Tensor]",
        recipe: "Recipe | Assignment",
        importance: Mapping[str, Importance] | None,
    ) -> "Task":
        """The task of a model in memory; the recipe `LOSSLESS` keeps every bit. Raises BadInput, BadRecipe."""
        tensors, aliases, roles = tensors_of(model)
        original = sum(t.numel() * t.element_size() for t in tensors.values())
        module = model if isinstance(model, nn.Module) else None
        warnings = dict.fromkeys(foreign_names(module) if module is not None else (), _FOREIGN)
        if recipe == LOSSLESS:
            weights, text = lossless_weights(tensors), LOSSLESS
        else:
            assignment = Assignment.of(recipe)
            specs, text = as_held(assignment.by_name(tensors, aliases)), assignment.text
            constants = constants_of(module) if module is not None else ()
            weights = plan_weights(tensors, specs, roles, importance, constants)
            kept = {weight.name for weight in weights if weight.kept}
            measured = importance.warnings if isinstance(importance, ImportanceMap) else {}
            warnings |= {name: text for name, text in measured.items() if name not in kept}
        sizes = noted_sizes(module) if module is not None else {}
        notes = {"recipe": text, "original": original} | (
            {NOTE: sizes} if sizes else {}
        )  # in the order of `compress_file`: no byte differs
        return cls(weights, aliases, notes | ({"warnings": warnings} if warnings else {}))

    @property
    def original(self) -> int:
        """Bytes of the original tensors."""
        return int(self.notes["original"])

    @property
    def count(self) -> int:
        """Entries that count as weights."""
        return count_weights((w.name, w.layout) for w in self.weights)

    def memory_of(self, model: CompressedModel) -> int:
        """Bytes in memory of the weights of the compressed model, of those of which a budget counts them."""
        return sum(w.held(model.entries[w.name].parts) for w in self.weights if w.name in model.entries)

    def allowed(self, budget: Budget) -> int | None:
        """Bytes that the file may have; None where a price decides."""
        return budget.file_bytes(self.count, self.original)


_Kept = TypeVar("_Kept", bound=Store)


@dataclass(frozen=True, eq=False)
class Compression(Generic[_Kept]):
    """A task with the results so far of its weights, and the fitter."""

    task: Task
    store: _Kept
    options: Options

    @property
    def weights(self) -> list[Weight]:
        """The weights of the task."""
        return self.task.weights

    def with_notes(self, notes: dict[str, Any]) -> "Compression[_Kept]":
        """The same compression with other notes."""
        return replace(self, task=replace(self.task, notes=notes))

    def fit(self, i: int, price: float) -> float:
        """Fit weight i at a price and keep the result; its real bits, or those in memory where these count."""
        fitted = self.store.fit(i, self.weights[i], price)
        return 8.0 * max(fitted.size, fitted.memory)

    @property
    def memory(self) -> int:
        """Bytes in memory, or in another format, of the weights so far, of those of which a budget counts them."""
        return sum(one.memory for i in range(len(self.weights)) if (one := self.store.get(i)) is not None)

    def counted(self, memory: int) -> str:
        """The remark of a file whose budget counts these bytes of the weights."""
        return counted(memory + (self.options.beside if memory else 0), self.options.runs)

    def manifest(self) -> dict[str, Any]:
        """The manifest of the file."""
        fitted = [self.store.get(i) for i in range(len(self.weights))]
        words = [_UNFITTED if one is None else one.words for one in fitted]
        rows = [row_of(w.layout, own, w.reason) for w, own in zip(self.weights, words, strict=True)]
        return Manifest(rows, self.task.aliases, self.task.notes).pack()

    def file_bytes(self, lengths: Sequence[int]) -> int:
        """Exact bytes of a file with blobs of these lengths."""
        names = [weight.name for weight in self.weights]
        return size_of(self.manifest(), dict(zip(names, lengths, strict=True)))

    @cached_property
    def run(self) -> Fitter:
        """The fitter that meets a budget."""
        return Fitter(self.weights, self.fit, self._overhead, self.options.report, self.options.workers)

    def _overhead(self, lengths: Sequence[int]) -> int:
        return self.file_bytes(lengths) - sum(lengths) + self.options.beside

    def meet(self, budget: Budget) -> Ledger:
        """Fit every weight to the budget. Raises BudgetError."""
        return self.run.meet(budget, self.task.original)


def in_memory(task: Task, options: Options) -> Compression[MemoryStore]:
    """A compression with nothing fitted yet, whose results are kept in memory."""
    threads = options.threads or min(_MOST_THREADS, torch.get_num_threads())
    return Compression(task, MemoryStore(), replace(options, threads=threads))


def model_of(work: Compression[MemoryStore]) -> CompressedModel:
    """The compressed model so far, with empty entries for weights that are not fitted yet."""
    known = work.store.entries
    entries = [known.get(i) or Entry(w.name, w.layout, (), b"", w.reason) for i, w in enumerate(work.weights)]
    return CompressedModel({entry.name: entry for entry in entries}, dict(work.task.aliases), work.task.notes)


def with_remark(model: CompressedModel, size: int | None, elsewhere: str = "") -> CompressedModel:
    """The model, with a remark in its notes as `remarked` makes it."""
    return replace(model, notes=remarked(model.notes, size, lambda notes: replace(model, notes=notes).size, elsewhere))


def remarked(
    notes: dict[str, Any], size: int | None, file_bytes: Callable[[dict[str, Any]], int], elsewhere: str = ""
) -> dict[str, Any]:
    """Notes, with a remark where a file leaves much of the `size` bytes unused, if there is room for it.

    file_bytes: (notes) -> bytes of the file with these. elsewhere: the remark where other bytes count than those of the
    file.
    """
    remark: str | None = elsewhere
    if size is not None and not elsewhere:
        remark = unused(size, file_bytes(notes))
    more = notes | ({"budget": remark} if remark else {})
    return more if size is None or file_bytes(more) <= size else notes


def resolve(budget: Budget, recipe: "Recipe | Assignment") -> Budget:
    """The budget, or the default where none was given. Raises BadRecipe for a budget of a lossless file."""
    if recipe == LOSSLESS:
        if budget.given:
            raise BadRecipe("lossless takes what it takes: give no budget with it")
        return Budget(price=FIXED_RATE_PRICE)
    if budget.given:
        return budget
    return Budget(price=FIXED_RATE_PRICE) if Assignment.of(recipe).fixed_rate else Budget(bits=DEFAULT_BITS)
