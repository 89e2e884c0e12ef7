"""From tensors to parts at one price: what `compress` and `compress_file` share, and `compress` itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from waterfill import recipe
from waterfill.allocate import FILL, Bracket, Ledger, bracket, settle, spend
from waterfill.errors import BadInput, BadRecipe, BudgetError
from waterfill.importance import SIZE_EXPONENT, Importance
from waterfill.layout import KERNEL, MATRIX, RAW, STACK, Layout, layout_of
from waterfill.model import CompressedModel, Entry, count_weights
from waterfill.part import Spec
from waterfill.weights import Weight

DEFAULT_BITS = 4.0
"""Bits per weight where no budget is given."""
FIXED_RATE_PRICE = 4.0**-7
"""Nats per bit for the small tensors beside a recipe of fixed rate."""


@dataclass(frozen=True)
class Progress:
    """How far a compression is: stage ("measuring" or "fitting"), tensors and entries done and in all."""

    stage: str
    done: int
    total: int
    entries_done: int
    entries: int


@dataclass(frozen=True)
class Target:
    """What to meet, at most one of: bits per weight of the whole file, its size in bytes, the ratio to the original
    tensors' bytes, or the price in nats per bit."""

    bits: float | None = None
    size: int | None = None
    ratio: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) > 1:
            raise BadRecipe(f"one budget at a time, not {' and '.join(given)}")
        for name, value in given.items():
            if not 0 < float(value) < math.inf:
                raise BudgetError(f"{name}={value}: a budget is a positive number")

    def file_bytes(self, weights: int, original: int) -> int | None:
        """The size that the file may have; None where a price decides."""
        if self.bits is not None:
            return int(self.bits * weights / 8)
        if self.ratio is not None:
            return int(original / self.ratio)
        return None if self.size is None else int(self.size)


def tensors_of(model: "nn.Module | Mapping[str, Tensor]") -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors by name, aliases of tied ones, and roles where a module knows them. Raises BadInput."""
    state = model.state_dict() if isinstance(model, nn.Module) else dict(model)
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise BadInput(f"{name!r} {problem}")
    seen: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
    tensors = {name: value for name, value in state.items() if name not in aliases}
    return tensors, aliases, roles_of(model) if isinstance(model, nn.Module) else {}


def _problem(name: object, value: object) -> str | None:
    """Why an item of a state dict is no named tensor with values, or None."""
    if not isinstance(name, str):
        return "is no name of a tensor; names are text"
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor; give a flat state dict"
    if value.is_meta:
        return "is on the meta device and has no values; load the weights first"
    if value.layout != torch.strided or value.is_quantized:
        return "is sparse or quantized by PyTorch; give a plain tensor: to_dense(), dequantize()"
    return None


def roles_of(module: nn.Module) -> dict[str, str]:
    """What the module says of tensors with three or more dimensions: kernels of convolutions, else stacked matrices."""
    roles = {}
    for prefix, child in module.named_modules():
        conv = isinstance(child, nn.modules.conv._ConvNd)
        for name, value in child.named_parameters(recurse=False):
            if value.ndim >= 3:
                role = KERNEL if conv else STACK if value.ndim == 3 else MATRIX
                roles[f"{prefix}.{name}" if prefix else name] = role
    return roles


def plan_weights(
    tensors: Mapping[str, Tensor], spec: Spec, roles: Mapping[str, str], importance: Mapping[str, Importance] | None
) -> list[Weight]:
    """A `Weight` for every tensor. Raises BadInput for importance that names no tensor or does not fit it."""
    importance = importance or {}
    unknown = sorted(set(importance) - set(tensors))
    if unknown:
        raise BadInput(f"importance is given for {unknown[0]!r}, which is not a tensor of the model")
    weights = []
    for name, value in tensors.items():
        layout = layout_of(tuple(value.shape), value.dtype, roles.get(name))
        weight = Weight(name, layout, spec, partial(_on_cpu, value), importance.get(name))
        weight.check()
        weights.append(weight)
    return weights


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().cpu()


def lossless_weights(tensors: Mapping[str, Tensor]) -> list[Weight]:
    """Every tensor as it is, bit for bit."""
    exact = recipe.parse('Dense(format="lossless")')
    return [
        Weight(name, Layout(tuple(value.shape), value.dtype, RAW), exact, partial(_on_cpu, value))
        for name, value in tensors.items()
    ]


@dataclass
class Run:
    """One compression under way.

    weights: what is to be fitted. fit: (index, price) -> real bits of the blob found there, which the callee keeps.
    overhead: (blob lengths in order) -> bytes of the file beside the blobs. workers: threads.
    """

    weights: Sequence[Weight]
    fit: Callable[[int, float], float]
    overhead: Callable[[Sequence[int]], int]
    progress: Callable[[Progress], None] | None = None
    workers: int = 1
    _done: dict[str, set[int]] = field(default_factory=dict)
    _entries_done: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def entries(self) -> int:
        """Entries of all weights."""
        return sum(w.layout.entries for w in self.weights)

    def meet(self, target: Target, original: int) -> Ledger:
        """Fit every weight as the target asks; `original`: bytes of the tensors as they were."""
        size = target.file_bytes(count_weights((w.name, w.layout) for w in self.weights), original)
        return self.at_price(target.price or FIXED_RATE_PRICE) if size is None else self.to_size(size)

    def at_price(self, price: float) -> Ledger:
        """Fit every weight at one price."""
        with ThreadPoolExecutor(self.workers) as pool:
            bits = list(pool.map(lambda i: self._fit(i, price), range(len(self.weights))))
        return Ledger({i: price for i in range(len(bits))}, dict(enumerate(bits)))

    def to_size(self, size: int) -> Ledger:
        """Fit every weight so that the file has at most `size` bytes and, where the parts allow, nearly that."""
        found = self.bracket(size)
        lengths = [int(found.bits(i, 0.5) / 8) for i in range(len(self.weights))]
        allowed = 8.0 * (size - self.overhead(lengths) - 8)
        return self.settled(spend(found, allowed, self._fit, self.workers), found, size)

    def settled(self, ledger: Ledger, found: Bracket, size: int, order: Sequence[int] | None = None) -> Ledger:
        """The ledger once the file has at most `size` bytes; order: the weights that may be fitted again for it."""
        for attempt in range(5):
            lengths = [int(ledger.bits[i] / 8) for i in range(len(self.weights))]
            exact = 8.0 * (size - self.overhead(lengths))
            if ledger.total <= exact and (order is None or ledger.total >= FILL * exact or attempt > 1):
                return ledger
            with suppress(BudgetError) if order is not None else nullcontext():
                settle(found, exact - 64, self._fit, ledger, order=order)
                continue
            order = None  # these weights alone cannot make up for it
        raise BudgetError(f"{size} bytes could not be met to the byte; allow a little more")

    def price_for(self, size: int) -> float:
        """The price at which, by the curves, the file has `size` bytes."""
        found = self.bracket(size)
        lengths = [int(found.bits(i, 0.5) / 8) for i in range(len(self.weights))]
        return found.price(found.share(8.0 * (size - self.overhead(lengths))))

    def bracket(self, size: int) -> Bracket:
        """The grid prices between which a file of `size` bytes lies. Raises BudgetError where it cannot be so small."""
        least = self.overhead([1] * len(self.weights))
        if size <= least:
            raise BudgetError(f"a budget of {size} bytes is less than the names and checksums alone take ({least})")
        guess = self._guess(8 * (size - least) / max(1, self.entries))
        return bracket(self._measure, len(self.weights), 8.0 * (size - least), max(-24, min(12, guess)), self.workers)

    def _guess(self, bits: float) -> int:
        """The k at which price 4^k spends about so many bits an entry, by the high-rate formula."""
        known = [(w.level, w.layout.entries) for w in self.weights if w.level is not None]
        covered = sum(entries for _, entries in known)
        if covered > 0.5 * self.entries:
            return round(sum(level * entries for level, entries in known) / covered - bits)
        average = max(2.0, self.entries / len(self.weights))  # where a relative error has its cost
        return min(0, round(-bits - (1 - SIZE_EXPONENT) * math.log(average, 4)))

    def _measure(self, i: int, k: int) -> float:
        bits = self.weights[i].curve.at_grid(k).bits
        self._report("measuring", i)
        return bits

    def _fit(self, i: int, price: float) -> float:
        bits = self.fit(i, price)
        self._report("fitting", i)
        return bits

    def _report(self, stage: str, i: int) -> None:
        if self.progress is None:
            return
        with self._lock:
            done = self._done.setdefault(stage, set())
            if i not in done:
                done.add(i)
                self._entries_done[stage] = self._entries_done.get(stage, 0) + self.weights[i].layout.entries
            self.progress(Progress(stage, len(done), len(self.weights), self._entries_done[stage], self.entries))


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
        original = sum(t.numel() * t.element_size() for t in tensors.values())
        if spec == "lossless":
            return cls(lossless_weights(tensors), {}, aliases, {"recipe": spec, "original": original}, progress)
        parsed = recipe.parse(spec) if isinstance(spec, str) else spec
        weights = plan_weights(tensors, parsed, roles, importance)
        return cls(weights, {}, aliases, {"recipe": repr(parsed), "original": original}, progress)

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


def compress(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    model: "nn.Module | Mapping[str, Tensor]",
    spec: "Spec | str" = "Quantize()",
    *,
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    importance: Mapping[str, Importance] | None = None,
    lossless: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> CompressedModel:
    """Compress a module or a state dict to a budget: bits per weight of the whole file, its bytes, a ratio, or a price.

    importance: by tensor name, what errors cost; without it a relative error costs the same everywhere. Weights that
    count are all floating-point entries but the running statistics of norms. Without a budget the file gets 4 bits per
    weight, unless the recipe is of fixed rate. lossless: every tensor bit for bit, without a budget.
    Raises BadInput (NaN, shapes), BadRecipe, BudgetError.
    """
    target = resolve(Target(bits, size, ratio, price), spec, lossless)
    work = Compression.of(model, "lossless" if lossless else spec, importance, progress)
    work.run.meet(target, work.original)
    return work.model()


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
