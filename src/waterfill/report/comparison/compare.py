"""Several recipes at several sizes: a file of each is made, measured and forgotten, one after the other."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import AsSet, own_arithmetic
from waterfill.assignment import Assignment
from waterfill.calibration.cache import fingerprint
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.compress import compress
from waterfill.compression.options import Options
from waterfill.compression.post_training import Calibrated, calibrated
from waterfill.compression.task import resolve
from waterfill.errors import BadInput, BudgetError
from waterfill.evaluation.paired import Scores
from waterfill.evaluation.quality import Measure, measure_of
from waterfill.model.compressed import CompressedModel, count_weights
from waterfill.model.install import install
from waterfill.network.layout import layout_of
from waterfill.network.running.forward import Forward, copy_of
from waterfill.network.running.inputs import Inputs
from waterfill.report.comparison.kept import Kept
from waterfill.report.comparison.rows import KIND, Comparison, Row
from waterfill.report.folded import Source, originals_of
from waterfill.report.layers import Layers, assumed_layers, layers_with
from waterfill.report.limits import Limits
from waterfill.report.rounding import GROUP, rounded_matrix, spent_on
from waterfill.storage.work_directory import temporary_folder

AUTOMATIC = "automatic"
"""The recipe that `compress` takes where none is given."""
Other = Callable[[float], tuple[int, Mapping[str, Tensor]]]
"""(bits per weight) -> bytes and the state dict that comes back: an opponent."""
_ROUNDING = (2, 3, 4, 5, 6, 8)
_Made = tuple[int, Mapping[str, Tensor] | CompressedModel]


@dataclass(frozen=True)
class _Job:
    """A file to be made: its series, the bits that it is asked for, and how it is made."""

    series: str
    bits: float | None
    make: Callable[[], _Made]

    @property
    def key(self) -> str:
        return f"{self.series} @ {'' if self.bits is None else f'{self.bits:g}'}"


@dataclass
class _Subject:
    """The network, measured when it is first needed."""

    source: Source
    inputs: Inputs | None
    options: Options
    stack: ExitStack
    measure: Measure | None

    @cached_property
    def calibrated(self) -> Calibrated:
        assert isinstance(self.source, nn.Module) and self.inputs is not None
        return self.stack.enter_context(calibrated(self.source, self.inputs, None, self.options))

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """All tensors, norms folded where files have them folded."""
        if self.inputs is not None:
            return dict(self.calibrated.model.state_dict())
        return {name: original.load() for name, original in originals_of(self.source).items()}

    @cached_property
    def layers(self) -> Layers:
        """What errors cost."""
        if self.inputs is not None:
            return layers_with(self.calibrated.model, self.calibrated.calibration)
        return assumed_layers(self.source if isinstance(self.source, nn.Module) else self.state)

    @cached_property
    def limits(self) -> Limits:
        return Limits("", self.layers.weights, {}, ())

    def compressed(self, recipe: str, bits: float | None) -> _Made:
        """A file of a recipe."""
        if self.inputs is None:
            model = self.source if isinstance(self.source, nn.Module) else self.state
            spec = None if recipe == AUTOMATIC else recipe
            made = compress(model, spec=spec, bits=bits, options=self.options)
        else:
            own = self.calibrated if recipe == AUTOMATIC else self.calibrated.with_spec(recipe)
            made = own.to(resolve(Budget(bits=bits), recipe))
        return made.size, made

    def rounded(self, bits: int) -> _Made:
        """Every matrix rounded to nearest; tensors of one dimension cost 16 bits an entry, constants nothing."""
        state, spent = dict(self.state), 0.0
        for name, value in state.items():
            layer = self.layers.weights.get(name)
            if layer is not None:
                matrices = [rounded_matrix(matrix, bits) for matrix in layer.layout.split(value)]
                state[name] = layer.layout.join(matrices)
                spent += sum(spent_on(*layer.layout.matrix, bits) for _ in matrices)
            elif value.numel() and bool((value != value.reshape(-1)[0]).any()):
                spent += 16 * value.numel()
        return int(spent / 8), state


def compare(  # noqa: PLR0913 - what is compared, on what it is measured, and where it is kept
    model: Source,
    batches: Iterable[Any] | None = None,
    *,
    recipes: Sequence[str] = (AUTOMATIC,),
    bits: Sequence[float] = (4.0, 3.0, 2.0),
    held_out: Iterable[Any] | None = None,
    metric: str = "accuracy",
    rounding: bool = False,
    others: Mapping[str, Other] | None = None,
    forward: Forward | None = None,
    work: "str | Path | None" = None,
    options: Options = Options(),
) -> Comparison:
    """Compress a network by several recipes to several sizes, and measure each file.

    Args:
        model: a module, which is not changed; without batches also a state dict or a checkpoint, held in memory.
        batches: inputs to calibrate with, once for all files; without them what errors cost is assumed.
        recipes: texts of specs, also by patterns of names, or "automatic" for what `compress` takes by itself. One of a
            fixed rate gives one row.
        bits: per weight, of the whole file, for each recipe.
        held_out: inputs, with targets where the metric needs them, to measure quality on.
        metric: accuracy, top5, agreement, perplexity, nats or divergence.
        rounding: plain rounding to nearest in groups of 128 too, at 2 to 8 bits.
        others: opponents by name, each a function (bits) -> (bytes, state dict of the module).
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.
        work: a JSON file that each row is written to at once. The same call goes on there, with more rows if more are
            asked for.
        options: progress, threads and memory of each compression.

    Returns:
        A table with a row for each file, and a plot.

    Raises:
        BadInput, BadRecipe: as `compress`; inputs without a module to run them.
        PlanMismatch: `work` is of another network, or of other inputs.

    Example:
        >>> table = report.compare(model, inputs.split(32), recipes=["Quantize()", "Quantize() + Prune()"], bits=[3, 2])
        >>> print(table.text())
    """
    if not isinstance(model, nn.Module) and (batches is not None or held_out is not None or others):
        raise BadInput("inputs and opponents are run by a module: give it as the model, with its weights loaded")
    inputs = None if batches is None else Inputs(list(batches), AsSet.now(forward))
    held = None if held_out is None else list(held_out)
    about = _about(model, inputs, held, metric)
    with own_arithmetic(), ExitStack() as stack, options.shown() as settled:
        kept = stack.enter_context(Kept.at(work, KIND, about))
        kept.more["costs"] = "assumed" if inputs is None else "measured"
        measure = None
        if held is not None and isinstance(model, nn.Module):
            measure = measure_of(metric, held, model, forward=forward)
            kept.more |= {"metric": metric, "better": measure.better}
            kept.more["original"] = kept.more.get("original", measure(model))
        subject = _Subject(model, inputs, settled, stack, measure)
        jobs = [*_jobs(subject, recipes, bits), *(_rounding(subject) if rounding else ())]
        jobs += [_Job(name, b, partial(make, b)) for name, make in (others or {}).items() for b in bits]
        for job in jobs:
            if job.key not in kept.rows:
                kept.add(job.key, asdict(_measured(subject, job)))
        wanted = {job.key for job in jobs}
        rows = {key: row for key, row in kept.rows.items() if key in wanted}
        return Comparison.of({"more": kept.more, "rows": rows}, f"{work}")


def _about(model: Source, inputs: Inputs | None, held: list[Any] | None, metric: str) -> dict[str, Any]:
    """What identifies a comparison: the weights, the inputs, and how quality is measured."""
    weights = {name: original.load() for name, original in originals_of(model).items()}
    marks = fingerprint(weights, {}, inputs.batches if inputs else [])
    held_marks = fingerprint({}, {}, held)["batches"] if held else None
    about = {"weights": marks["weights"], "inputs": marks["batches"], "held-out inputs": held_marks}
    return about | {"metric": metric if held else "", "version": metadata.version("waterfill")}


def _jobs(subject: _Subject, recipes: Sequence[str], bits: Sequence[float]) -> Iterator[_Job]:
    for recipe in recipes:
        fixed = recipe != AUTOMATIC and Assignment.of(recipe).fixed_rate
        for b in (None,) if fixed else bits:
            yield _Job(recipe, b, partial(subject.compressed, recipe, b))


def _rounding(subject: _Subject) -> Iterator[_Job]:
    for b in _ROUNDING:
        yield _Job(f"rounding, groups of {GROUP}", float(b), partial(subject.rounded, b))


def _measured(subject: _Subject, job: _Job) -> Row:
    """The row of a file; one that cannot be made so small is a remark."""
    began = time.perf_counter()
    try:
        size, made = job.make()
    except BudgetError as error:
        return Row(job.series, job.bits, 0, 0.0, remark=f"{error}")
    seconds = time.perf_counter() - began
    weights = count_weights((name, layout_of(tuple(v.shape), v.dtype)) for name, v in subject.state.items())
    rate = nats = bound = None
    if isinstance(made, CompressedModel):
        with temporary_folder() as folder:
            made.save(folder / "one.wf")
            found = subject.limits.of_file(str(folder / "one.wf"))
        rate, nats, bound = found.bits, found.nats, found.bound
    quality = doubt = None
    remark = ""
    try:
        quality, doubt = _quality(subject, made)
    except BadInput as error:  # the original's outputs were fine
        remark = f"{error}"
    bits = 8 * size / max(1, weights)
    return Row(job.series, job.bits, size, bits, rate, nats, bound, quality, doubt, seconds, remark)


def _quality(subject: _Subject, made: Mapping[str, Tensor] | CompressedModel) -> tuple[float | None, float | None]:
    """The quality of a network, and its standard error."""
    if subject.measure is None or not isinstance(subject.source, nn.Module):
        return None, None
    network = copy_of(subject.source)
    made.install(network) if isinstance(made, CompressedModel) else install(network, made)
    scores = subject.measure.scores(network)
    if not isinstance(scores, Scores):
        return float(scores), None
    return scores.value, scores.error if torch.isfinite(scores.sums).all() else None
