"""Passes over the batches: a traced forward pass, and a backward pass from each random probe of the outputs."""

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from waterfill.calibration.batch_norm import statistics
from waterfill.calibration.cache import Measurement
from waterfill.calibration.combine import merge
from waterfill.calibration.moments import GradientSquares
from waterfill.calibration.probes import Softened, signs
from waterfill.calibration.recorder import MomentRecorder, Selection
from waterfill.errors import BadInput
from waterfill.evaluation.divergence import are_logits
from waterfill.network.layout import VECTOR, Layout
from waterfill.network.running.batches import any_never, count_of, each_tensor, never, samples_in, shapes, tensors_in
from waterfill.network.running.forward import Forward, as_deployed, call
from waterfill.network.running.state import unchanged
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightViews
from waterfill.progress import Progress
from waterfill.storage.remarks import FEW_SAMPLES

Loss = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> scalar, the mean over the rows of the outputs."""
AUTO, OUTPUTS, DIVERGENCE, FISHER = "auto", "outputs", "divergence", "fisher"
_ENTRIES_AT_A_TIME = 1 << 18
_LARGE, _ONE_IN = 1 << 22, 4  # gradients of so many entries are computed in one of so many batches, where that will do
_SEQUENCE = 3  # dimensions of the outputs of a sequence: batch, places, classes
KINDS = (AUTO, OUTPUTS, DIVERGENCE, FISHER)
RELATIVE = (AUTO, OUTPUTS)
"""Kinds whose D is relative to the cost of losing all outputs, so that it does not depend on the outputs' unit."""


@contextmanager
def _differentiating(model: nn.Module, names: Container[str]) -> Iterator[dict[str, nn.Parameter]]:
    """A block in which only the named parameters require gradients; after it all do as they did before."""
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name: value for name, value in named.items() if name in names}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    made = next((name for name, parameter in named.items() if parameter.is_inference()), None)
    if made is not None:
        raise BadInput(
            f"{made!r} was made in torch.inference_mode and can have no gradient; build the model outside it"
        )
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


@dataclass
class Passes:
    """Passes over the batches with one model.

    importance: see `calibrate`. passes: how many there will be. number: of the batch in this pass. rows: output rows in
    this pass. energy: the cost of losing all outputs, 2 D, summed over the rows. spared: by parameter, batches whose
    gradient was left out.
    """

    model: nn.Module
    batches: Iterable[Any]
    importance: "str | Loss"
    forward: Forward | None
    seed: int
    progress: Callable[[Progress], None] | None
    passes: int
    done: int = 0
    number: int = 0
    rows: int = field(default=0)
    energy: float = field(default=0.0)
    spared: Counter[str] = field(default_factory=Counter)

    def gather(
        self, weights: Mapping[str, Tensor], layouts: Mapping[str, Layout], selection: Selection
    ) -> Iterator[tuple[str, Measurement]]:
        """One pass over the batches: the measurement of each selected weight."""
        matrices = {name: value for name, value in weights.items() if layouts[name].role != VECTOR}
        recorder = MomentRecorder(layouts, selection, torch.Generator("cpu").manual_seed(self.seed + 1))
        tracer = Tracer(WeightViews(matrices, layouts), recorder)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        self.rows, self.energy = 0, 0.0
        self.spared.clear()
        count = 0
        derived = {name: value for name, value in statistics(self.model).items() if name in selection.full}
        differentiated = {*selection.full, *(value.source for value in derived.values())}
        gradient_squares = {
            name: GradientSquares(layout, selection.probes)
            for name, layout in layouts.items()
            if name in selection.full
        }
        with as_deployed(self.model), _differentiating(self.model, differentiated) as parameters, torch.enable_grad():
            for batch in self.batches:
                own, self.number = each_tensor(batch, Tensor.detach), count
                try:
                    with unchanged(self.model):
                        for by_name in self._probe_all(own, (tracer, recorder), parameters, generator):
                            for name, squares in gradient_squares.items():
                                gradient = by_name.get(derived[name].source if name in derived else name)
                                if gradient is not None:
                                    squares.add(gradient * derived[name].factor if name in derived else gradient)
                except BadInput as error:
                    raise BadInput(f"batch {count} of the calibration: {error}") from error
                count += 1
                self._report(count)
        if count == 0:
            raise BadInput("there are no batches to calibrate with; does the loader yield any, or was it used up?")
        for name in selection.full:
            gradient_squares[name].add_known(*recorder.known(name))
            gradient_squares[name].spared = self.spared[name]
            yield name, self._measurement(name, (tracer, recorder), gradient_squares[name])

    def _measurement(self, name: str, traced: tuple[Tracer, MomentRecorder], gradient: GradientSquares) -> Measurement:
        """The importance of a weight at the end of a pass, or the reason why it has none."""
        tracer, recorder = traced
        about = {"samples": str(self.rows), "unit": repr(self._unit(recorder.selection.probes))}
        terms = list(recorder.terms.pop(name, {}).values())
        exact = gradient.count > 0 and not callable(self.importance)
        merged = merge(terms, recorder.layouts[name], self.rows, gradient if exact else None)
        calls = ", ".join(sorted(tracer.others.get(name, ())))
        if merged is not None:
            full = recorder.selection.full[name]
            about |= {} if full else {"note": "diagonal only: its Gram matrix is larger than the memory allowed"}
            return Measurement(merged[0], about | {"unmet": merged[1] if self.rows >= FEW_SAMPLES else ""})
        diagonal = gradient.importance(self.rows)
        if diagonal is not None and recorder.layouts[name].role == VECTOR:
            return Measurement(diagonal, about)
        if diagonal is not None:
            about |= {
                "note": f"diagonal only, of its gradient: used by {calls or 'other code'}",
                "unmet": gradient.unmet if self.rows >= FEW_SAMPLES else "",
            }
            return Measurement(diagonal, about)
        if calls:
            return Measurement(None, about | {"reason": f"used by {calls}, which passes no gradient to it"})
        reached = name in tracer.reached
        return Measurement(
            None, about | {"reason": "the outputs do not depend on it" if reached else "no batch reaches it"}
        )

    def _probe_all(
        self,
        batch: Any,
        traced: tuple[Tracer, MomentRecorder],
        parameters: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> Iterator[dict[str, Tensor | None]]:
        """Run a batch forward and, for every probe, backward; the gradients of the parameters that are needed."""
        (tracer, recorder), samples = traced, samples_in(batch)
        recorder.begin(samples)
        if any(tensor.numel() == 0 for tensor in tensors_in(batch)) and samples == 0:
            raise BadInput(f"it holds no inputs, but {shapes(batch)}; leave such batches out")
        with tracer:
            outputs = call(self.model, batch, self.forward)
        tracer.views.forget()
        if not outputs.requires_grad:
            raise BadInput(
                "the outputs carry no gradient: the model runs without one (no_grad, inference_mode, a compiled or "
                "scripted module), or none of its weights reaches them"
            )
        rows = outputs.numel() // outputs.shape[-1] if outputs.ndim > 1 else outputs.numel()
        self.rows += rows
        needed = {name: value for name, value in parameters.items() if self._is_needed(name, traced)}
        draw = self._probe(outputs, batch, rows, generator)
        for probe in range(recorder.selection.probes):
            last = probe == recorder.selection.probes - 1
            what, at = draw()
            self.energy += _energy(outputs, at) if self.importance in RELATIVE else 0.0
            if what.requires_grad:
                differentiated = [*needed.values(), recorder.anchor]
                gradients = torch.autograd.grad(what, differentiated, at, retain_graph=not last, allow_unused=True)
                yield dict(zip(needed, gradients[:-1], strict=True))

    def _is_needed(self, name: str, traced: tuple[Tracer, MomentRecorder]) -> bool:
        """Whether the gradient of a parameter is to be computed in this batch: not where its uses show it, nor each
        time where it is large and only corrects for their being several."""
        tracer, recorder = traced
        if name in tracer.others:
            return True
        if not recorder.needs_gradient(name):
            return False
        spared = self.number % _ONE_IN and name in recorder.terms and recorder.layouts[name].entries >= _LARGE
        self.spared[name] += bool(spared)
        return not spared

    def _probe(
        self, outputs: Tensor, batch: Any, rows: int, generator: torch.Generator
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """Draws the tensor to differentiate, and the gradient to start from."""
        tempered_outputs = self.importance == DIVERGENCE or (self.importance == AUTO and outputs.ndim == _SEQUENCE)
        if tempered_outputs and are_logits(outputs):
            softened = Softened.of(outputs)
            return lambda: (outputs, softened.probe(generator))
        if self.importance in (AUTO, OUTPUTS, DIVERGENCE):
            return lambda: (outputs, signs(outputs, generator))
        if self.importance == FISHER:
            return lambda: (outputs, _of_labels(outputs, generator))
        assert callable(self.importance)
        loss = self.importance
        return lambda: _of_loss(loss, outputs, batch, rows)

    def _unit(self, probes: int) -> float:
        """The unit of D: what the D of one output row is divided by."""
        mean = self.energy / (probes * max(1, self.rows))
        return mean if self.importance in RELATIVE and 0 < mean < math.inf else 1.0

    def _report(self, count: int) -> None:
        self.done += 1
        if self.progress is not None:
            total = max(self.done, (count_of(self.batches) or 0) * self.passes)
            self.progress(Progress("calibrating", self.done, total, self.done, total))


def _of_labels(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of the log likelihood of labels drawn from the softmax over the last dimension. Raises BadInput."""
    if outputs.ndim == 0:
        raise BadInput('"fisher" takes the outputs for logits, classes last; this model returns a single number')
    probabilities = outputs.detach().float().softmax(-1)
    labels = torch.multinomial(probabilities.reshape(-1, probabilities.shape[-1]).cpu(), 1, generator=generator)
    drawn = F.one_hot(labels.reshape(outputs.shape[:-1]), outputs.shape[-1]).to(probabilities)
    return (probabilities - drawn).to(outputs)


def _of_loss(loss_of: Loss, outputs: Tensor, batch: Any, rows: int) -> tuple[Tensor, Tensor]:
    """A loss of the user's, and the gradient to start from. Raises BadInput."""
    try:
        loss = loss_of(outputs, batch)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise BadInput(f"the loss given as importance= failed on (outputs, batch): {said}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
        raise BadInput("the loss given as importance= did not return one finite number")
    return loss, torch.full_like(loss, float(rows))


def _energy(outputs: Tensor, probe: Tensor) -> float:
    """The squared inner product of outputs and a probe, summed over the rows; for signs its expectation."""
    width = outputs.shape[-1] if outputs.ndim else 1
    values, factors = outputs.detach().reshape(-1, width), probe.reshape(-1, width)
    values = values.masked_fill(never(values), 0.0) if any_never(values) else values
    rows = max(1, _ENTRIES_AT_A_TIME // max(1, width))
    random_signs = True
    squares = products = 0.0
    for some, factor in zip(values.split(rows), factors.split(rows), strict=True):
        wide = some.double()
        random_signs = random_signs and bool(((factor.abs() == 1) | (factor == 0)).all())
        squares += float(wide.square().sum()) if random_signs else 0.0
        products += float((wide * factor.double()).sum(1).square().sum())
    return squares if random_signs else products
