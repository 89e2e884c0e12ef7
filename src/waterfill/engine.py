"""From tensors to parts at one price: what `compress` and `compress_file` share, and `compress` itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from waterfill import recipe
from waterfill.assumptions import informed
from waterfill.errors import BadInput, BadRecipe
from waterfill.importance import Importance
from waterfill.layout import KERNEL, MATRIX, RAW, STACK, Layout, layout_of
from waterfill.measured import Measured, at_common_price
from waterfill.model import CompressedModel, Entry, count_weights
from waterfill.part import Spec
from waterfill.run import FIXED_RATE_PRICE, Progress, Run, Target
from waterfill.weights import Weight

DEFAULT_BITS = 4.0
"""Bits per weight where no budget is given."""


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
    """What the module says of tensors with three or more dimensions: kernels of convolutions, stacked matrices, or one
    matrix whose columns are pairs of inputs (bilinear)."""
    roles = {}
    modules = dict(module.named_modules())
    for prefix, child in modules.items():
        owner = child  # of parametrizations, the module whose weight they make
        if isinstance(child, ParametrizationList):
            owner = modules[prefix.rpartition("parametrizations.")[0].rstrip(".")]
        for name, value in child.named_parameters(recurse=False):
            if value.ndim >= 3:
                roles[f"{prefix}.{name}" if prefix else name] = _role_in(owner, value.ndim)
    return roles


def _role_in(module: nn.Module, dims: int) -> str:
    if isinstance(module, nn.modules.conv._ConvNd):
        return KERNEL
    return MATRIX if dims > 3 or isinstance(module, nn.Bilinear) else STACK


def plan_weights(
    tensors: Mapping[str, Tensor], spec: Spec, roles: Mapping[str, str], importance: Mapping[str, Importance] | None
) -> list[Weight]:
    """A `Weight` for every tensor. Raises BadInput for importance that names no tensor or does not fit it."""
    importance = {} if importance is None else importance
    unknown = sorted(set(importance) - set(tensors))
    if unknown:
        raise BadInput(f"importance is given for {unknown[0]!r}, which is not a tensor of the model")
    weights = []
    for name, value in tensors.items():
        layout = layout_of(tuple(value.shape), value.dtype, roles.get(name))
        weight = Weight(name, layout, spec, partial(_on_cpu, value), _given(importance, name))
        weight.check()
        weights.append(weight)
    weights = informed(weights)
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
    """Every tensor as it is, bit for bit."""
    exact = recipe.parse('Dense(format="lossless")')
    return [
        Weight(name, Layout(tuple(value.shape), value.dtype, RAW), exact, partial(_on_cpu, value))
        for name, value in tensors.items()
    ]


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
        notes = {"recipe": repr(parsed), "original": original}
        if isinstance(importance, Measured) and importance.warnings:
            notes["warnings"] = dict(importance.warnings)
        return cls(weights, {}, aliases, notes, progress)

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

    importance: by tensor name, what errors cost; without it a relative error costs the same everywhere. That of
    `calibrate` says what errors in all other weights cost too, as in a typical weight of their size. Weights that
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
