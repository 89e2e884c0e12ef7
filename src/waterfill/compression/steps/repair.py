"""Corrections of small tensors after compression, each kept only if it helps on held-out inputs.

Bias correction and batch-norm re-estimation are known from data-free and post-training quantization (arXiv 1906.04721,
1810.05723); all of them can also do harm.
"""

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.compression.allocation.without_data import entrywise
from waterfill.compression.steps.corrections import BIAS, KINDS, Kind, fits_of
from waterfill.compression.steps.guard import Guard, Score
from waterfill.errors import BadInput
from waterfill.importance import Importance
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry, encode
from waterfill.network.batch_norm import LAYERS, fed_norms
from waterfill.network.kept import IGNORED
from waterfill.network.layout import RAW
from waterfill.network.running.batches import split
from waterfill.network.running.forward import Forward, as_deployed, call, copy_of, hooked
from waterfill.network.tensors import owners_of
from waterfill.parts import Dense

_STRENGTHS = (1.0, 0.5)  # of a correction: whole, or half where the whole one is too much
_MANTISSAS = (4, 5, 6, 7, 8, 10, 23)  # bits of corrected vectors in a file
_FEW_BYTES = 1 / 256  # of a file; so few for vectors, and any of
_PRECISE = (8, 23)  # bits will do
_TIMES_AS_MANY = 2  # outputs are run to fit corrections as to judge them


@dataclass(frozen=True)
class Step:
    """A correction that was tried: its name, the measure before and after it, whether it was kept and at what strength
    of 0 to 1, the tensors it changes, and a note on the layers it could not help."""

    what: str
    before: float
    after: float
    kept: bool
    strength: float
    tensors: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Repaired:
    """The result of `repair`.

    model: a new one, of the same type. measure: on the held-out inputs, "divergence" (nats a row) or "output error"
    (norm relative to the reference's), and its values before and after. changed: the new tensors by name. sizes: bytes
    of the file before and after, of a compressed model.
    """

    model: "nn.Module | CompressedModel"
    measure: str
    before: float
    after: float
    steps: tuple[Step, ...]
    changed: dict[str, Tensor]
    sizes: tuple[int, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """The report without tensors; numbers that are not finite are null."""
        steps = [{k: _plain(v) for k, v in vars(step).items()} for step in self.steps]
        report = {"measure": self.measure, "before": self.before, "after": self.after, "steps": steps}
        sizes = {} if self.sizes is None else {"bytes_before": self.sizes[0], "bytes_after": self.sizes[1]}
        return report | sizes | {"changed": sorted(self.changed)}

    def text(self) -> str:
        """A line for every correction."""
        lines = [f"{self.measure} on held-out inputs: {self.before:.6g} before, {self.after:.6g} after"]
        for step in self.steps:
            fate = f"kept at {step.strength:g}" if step.kept else "rolled back" if step.tensors else "not possible"
            note = f" ({step.note})" if step.note else ""
            lines.append(f"  {step.what}: {step.before:.6g} -> {step.after:.6g}, {fate}{note}")
        if self.sizes is not None:
            lines.append(f"file: {self.sizes[0]} -> {self.sizes[1]} bytes")
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@by_own_arithmetic
@torch.inference_mode(False)
def repair(  # noqa: PLR0913 - two networks, their inputs, and how these are to be read
    model: "nn.Module | CompressedModel",
    reference: nn.Module,
    batches: Iterable[Any],
    *,
    holdout: "float | Iterable[Any]" = 0.25,
    forward: Forward | None = None,
    logits: bool = True,
) -> Repaired:
    """Correct biases, statistics and affine terms of norms, and output scales, where that helps.

    All layers are corrected in one pass in order of execution, each with the corrections of those before it in place. A
    correction is kept only if on held-out inputs the divergence KL(reference || model) falls and the squared error of
    the outputs too, one of them by more than a standard error; all else stays bit for bit. Inputs from the training
    set are a weaker test than others, as the network is too confident on them.

    Args:
        model: the network with compressed weights, not changed; or a compressed model, of which only vectors change,
            stored in as many bits as are worth it.
        reference: the original, of the same class; not changed.
        batches: calibration inputs, each a tensor, a tuple of arguments or a dict of them by keyword; no labels.
        holdout: the share of them that is held out, or other batches.
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.
        logits: False for outputs that are no logits, of which only the squared error is measured.

    Raises:
        BadInput: fewer than two inputs, networks that do not match, outputs that are not finite.
    """
    fitting, held = split(batches, holdout)
    guard = Guard(reference, held, forward, logits)
    fitting = guard.few_enough(fitting, _TIMES_AS_MANY)
    if isinstance(model, CompressedModel):
        return _repair_file(model, reference, fitting, guard)
    work = copy_of(model)
    steps, changed = _repair(work, fitting, guard, KINDS)
    before = steps[0].before
    return Repaired(work, guard.name, before, min([before, *(s.after for s in steps if s.kept)]), steps, changed)


def _repair(
    work: nn.Module, fitting: list[Any], guard: Guard, kinds: Iterable[Kind], fixed: Container[str] = ()
) -> tuple[tuple[Step, ...], dict[str, Tensor]]:
    """Try every kind on `work`, in place, but for `fixed` tensors; the steps, and the changed tensors."""
    now = guard.measure(work)
    steps: list[Step] = []
    changed: set[str] = set()
    fed = set(fed_norms(work, fitting[0], guard.forward).values())
    for kind in kinds:
        found = _propose(kind, work, fitting, guard)
        proposed = {name: value for name, value in found.items() if name not in fixed}
        note = _note(kind, work, fed)
        strength, score = _try(work, proposed, guard, now)
        kept = strength > 0
        steps.append(Step(kind.what, now.value, score.value, kept, strength, tuple(proposed), note))
        if kept:
            now = score
            changed.update(proposed)
    state = work.state_dict()
    return tuple(steps), {name: state[name].detach().clone() for name in sorted(changed)}


def _note(kind: Kind, work: nn.Module, fed: set[str]) -> str:
    """Which layers a kind cannot help."""
    if kind is not BIAS:
        return "" if any(map(kind.applies, work.modules())) else "no such layers"
    bare = [n for n, m in work.named_modules() if isinstance(m, LAYERS) and not kind.applies(m) and n not in fed]
    if not bare:
        return ""
    return f"{bare[0]}{f' and {len(bare) - 1} more' if bare[1:] else ''}: neither a bias nor a batch norm behind"


def _propose(kind: Kind, work: nn.Module, fitting: list[Any], guard: Guard) -> dict[str, Tensor]:
    """New tensors of one kind for all layers it applies to, by name in the state dict."""
    layers = {name: module for name, module in work.named_modules() if kind.applies(module)}
    known = dict(guard.model.named_modules())
    if missing := [name for name in layers if name not in known]:
        raise BadInput(f"the reference has no layer {missing[0]!r}; it must be the network before compression")
    fits = fits_of(kind, layers)

    def remember(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            fits[name].reference(module, inputs, output)

    def correct(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return fits[name].compressed(module, inputs, output) if isinstance(output, Tensor) else None

    if layers:
        with (
            as_deployed(work, guard.model),
            hooked({name: known[name] for name in layers}, remember),
            hooked(layers, correct),
        ):
            for batch in fitting:
                call(guard.model, batch, guard.forward)
                call(work, batch, guard.forward)
    owners = owners_of(work)  # a tensor that is computed from others has none
    corrected = ((name, fits[name].values(module)) for name, module in layers.items())
    named = {f"{name}.{key}" if name else key: value for name, values in corrected for key, value in values.items()}
    return {owners[name]: value for name, value in named.items() if name in owners}


def _try(work: nn.Module, proposed: Mapping[str, Tensor], guard: Guard, now: Score) -> tuple[float, Score]:
    """Apply the new tensors at each strength in turn, until the measure falls; else restore the old ones.

    Returns the strength that was kept, 0 for none, and its score; without one, the best score.
    """
    held = dict(work.named_parameters()) | dict(work.named_buffers())
    old = {name: held[name].detach().clone() for name in proposed}
    tried = []
    for strength in _STRENGTHS if proposed else ():
        for name, before in old.items():
            _put(held[name], torch.lerp(before.double(), proposed[name].detach(), strength))
        tried.append(_measured(guard, work))
        if tried[-1].below(now):
            return strength, tried[-1]
        for name, before in old.items():
            _put(held[name], before)
    return 0.0, min(tried, key=lambda score: score.value, default=now)


@torch.no_grad()
def _put(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)


def _measured(guard: Guard, work: nn.Module) -> Score:
    """The score; infinite where a correction has made the outputs NaN or infinite."""
    try:
        return guard.measure(work)
    except BadInput:
        never = torch.full((1,), math.inf, dtype=torch.float64, device="cpu")
        return Score(math.inf, never, never)


def _repair_file(model: CompressedModel, reference: nn.Module, fitting: list[Any], guard: Guard) -> Repaired:
    """Repair the vectors of a compressed model and store them in as many bits as are worth it.

    One more bit per weight divides the divergence by four, and the norm of the error by two: divergence * 4^(bits per
    weight) compares files of different sizes.
    """
    base = 4.0 if guard.logits else 2.0
    work = model.install(copy_of(reference))
    fixed = {name for name, entry in model.entries.items() if entry.reason == IGNORED}
    fixed |= {name for name, owner in model.aliases.items() if owner in fixed}
    steps, changed = _repair(work, fitting, guard, [kind for kind in KINDS if kind.vectors], fixed)
    best, before, after = model, steps[0].before, steps[0].before
    original = reference.state_dict()
    few = 4 * sum(value.numel() for value in changed.values()) < _FEW_BYTES * model.size
    for mantissa in (_PRECISE if few else _MANTISSAS) if changed else ():
        entries = dict(model.entries)
        for name, value in changed.items():
            own = model.aliases.get(name, name)
            entries[own] = _written(model.entries[own], value, original[name], mantissa)
        rewritten = CompressedModel(entries, model.aliases, model.notes)
        measured = _measured(guard, rewritten.install(work)).value
        if measured < before and measured * base**rewritten.bits < after * base**best.bits:
            best, after = rewritten, measured
    state = best.state_dict()
    tensors = {name: state[name] for name in changed} if best is not model else {}
    return Repaired(best, guard.name, before, after, steps, tensors, (model.size, best.size))


def _written(entry: Entry, value: Tensor, original: Tensor, mantissa: int) -> Entry:
    """The entry of a tensor with another value, rounded to so many mantissa bits."""
    spec = Dense(format="lossless") if entry.layout.role == RAW else Dense(mantissa=mantissa)
    pairs = ((m, Importance() if entry.layout.role == RAW else entrywise(m)) for m in entry.layout.split(value.cpu()))
    parts = tuple(spec.fit(matrix, importance, 1.0) for matrix, importance in pairs)
    gap = entry.layout.join([part.dense() for part in parts]).double() - original.cpu().double()
    energy = float(original.double().norm())
    error = float(gap.norm()) / energy if energy else None
    return replace(entry, parts=parts, blob=encode(parts), error=error)
