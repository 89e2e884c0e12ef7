"""Passes over the batches: forward traced, backward from a probe of the outputs."""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
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
from waterfill.calibration.probes import signs, softened
from waterfill.calibration.recorder import MomentRecorder, Wanted
from waterfill.errors import BadInput
from waterfill.evaluation.divergence import are_logits
from waterfill.network.layout import VECTOR, Layout
from waterfill.network.running.batches import count_of, each_tensor, never, samples_in, shapes, tensors_in
from waterfill.network.running.forward import Forward, as_deployed, call
from waterfill.network.running.state import unchanged
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightViews
from waterfill.progress import Progress
from waterfill.storage.remarks import FEW_SAMPLES

Loss = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> scalar, the mean over the rows of the outputs."""
AUTO, OUTPUTS, DIVERGENCE, FISHER = "auto", "outputs", "divergence", "fisher"
_SEQUENCE = 3  # dimensions of the outputs of a sequence: batch, places, classes
KINDS = (AUTO, OUTPUTS, DIVERGENCE, FISHER)
RELATIVE = (AUTO, OUTPUTS)
"""Kinds of which D is relative to what losing all outputs would cost, so that the unit of the outputs is nothing."""


@contextmanager
def _asked(model: nn.Module, wanted: Container[str]) -> Iterator[dict[str, nn.Parameter]]:
    """The wanted parameters, which alone ask for a gradient inside the block; after it, all ask as they did before."""
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name: value for name, value in named.items() if name in wanted}
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    made = next((name for name, parameter in named.items() if parameter.is_inference()), None)
    if made is not None:
        raise BadInput(
            f"{made!r} was made in torch.inference_mode and can have no gradient; build the model outside it"
        )
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter, flag in asked:
            parameter.requires_grad_(flag)


@dataclass
class Passes:
    """Passes over the batches with one model. importance: see `calibrate`. passes: how many there will be.
    rows: of outputs in this pass. energy: what losing all outputs would cost, 2 D, added up over the rows."""

    model: nn.Module
    batches: Iterable[Any]
    importance: "str | Loss"
    forward: Forward | None
    seed: int
    progress: Callable[[Progress], None] | None
    passes: int
    done: int = 0
    rows: int = field(default=0)
    energy: float = field(default=0.0)

    def gather(
        self, weights: Mapping[str, Tensor], layouts: Mapping[str, Layout], wanted: Wanted
    ) -> Iterator[tuple[str, Measurement]]:
        """One pass: what was found of each wanted weight."""
        matrices = {name: value for name, value in weights.items() if layouts[name].role != VECTOR}
        recorder = MomentRecorder(layouts, wanted, torch.Generator("cpu").manual_seed(self.seed + 1))
        tracer = Tracer(WeightViews(matrices, layouts), recorder)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        self.rows, self.energy = 0, 0.0
        count = 0
        derived = {name: value for name, value in statistics(self.model).items() if name in wanted.full}
        asked = {*wanted.full, *(value.source for value in derived.values())}
        slopes = {
            name: GradientSquares(layout, wanted.probes) for name, layout in layouts.items() if name in wanted.full
        }
        with as_deployed(self.model), _asked(self.model, asked) as parameters, torch.enable_grad():
            for batch in self.batches:
                own = each_tensor(batch, Tensor.detach)
                try:
                    with unchanged(self.model):
                        for gradients in self._probe_all(own, (tracer, recorder), list(parameters.values()), generator):
                            by_name = dict(zip(parameters, gradients, strict=True))
                            for name, slope in slopes.items():
                                gradient = by_name.get(derived[name].source if name in derived else name)
                                if gradient is not None:
                                    slope.add(gradient * derived[name].factor if name in derived else gradient)
                except BadInput as error:
                    raise BadInput(f"batch {count} of the calibration: {error}") from error
                count += 1
                self._report(count)
        if count == 0:
            raise BadInput("there are no batches to calibrate with; does the loader yield any, or was it used up?")
        for name in wanted.full:
            yield name, self._found(name, (tracer, recorder), slopes[name])

    def _found(self, name: str, seen: tuple[Tracer, MomentRecorder], slope: GradientSquares) -> Measurement:
        """The importance of a weight at the end of a pass, or why it has none."""
        (tracer, recorder), about = seen, {"samples": str(self.rows), "unit": repr(self._unit(seen[1].wanted.probes))}
        terms = list(recorder.terms.pop(name, {}).values())
        exact = slope.count > 0 and not callable(self.importance)
        found = merge(terms, recorder.layouts[name], self.rows, slope if exact else None)
        calls = ", ".join(sorted(tracer.others.get(name, ())))
        if found is not None:
            full = recorder.wanted.full[name]
            about |= {} if full else {"note": "diagonal only: its Gram matrix is larger than the memory allowed"}
            return Measurement(found[0], about | {"unmet": found[1] if self.rows >= FEW_SAMPLES else ""})
        diagonal = slope.importance(self.rows)
        if diagonal is not None and recorder.layouts[name].role == VECTOR:
            return Measurement(diagonal, about)
        if diagonal is not None:
            about |= {
                "note": f"diagonal only, of its gradient: used by {calls or 'other code'}",
                "unmet": slope.unmet if self.rows >= FEW_SAMPLES else "",
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
        seen: tuple[Tracer, MomentRecorder],
        parameters: Sequence[Tensor],
        generator: torch.Generator,
    ) -> Iterator[Sequence[Tensor | None]]:
        """Run a batch forward and, for every probe, backward: the gradients of the parameters."""
        (tracer, recorder), samples = seen, samples_in(batch)
        recorder.begin(samples)
        if any(found.numel() == 0 for found in tensors_in(batch)) and samples == 0:
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
        for probe in range(recorder.wanted.probes):
            last = probe == recorder.wanted.probes - 1
            what, at = self._probe(outputs, batch, rows, generator)
            self.energy += _energy(outputs, at) if self.importance in RELATIVE else 0.0
            if what.requires_grad:
                asked = [*parameters, recorder.anchor]
                yield torch.autograd.grad(what, asked, at, retain_graph=not last, allow_unused=True)[:-1]

    def _probe(self, outputs: Tensor, batch: Any, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What to differentiate and the gradient at it."""
        soft = self.importance == DIVERGENCE or (self.importance == AUTO and outputs.ndim == _SEQUENCE)
        if soft and are_logits(outputs):
            return outputs, softened(outputs, generator)
        if self.importance in (AUTO, OUTPUTS, DIVERGENCE):
            return outputs, signs(outputs, generator)
        if self.importance == FISHER:
            if outputs.ndim == 0:
                raise BadInput(
                    '"fisher" takes the outputs for logits, classes last; this model returns a single number'
                )
            probabilities = outputs.detach().float().softmax(-1)
            labels = torch.multinomial(probabilities.reshape(-1, probabilities.shape[-1]).cpu(), 1, generator=generator)
            drawn = F.one_hot(labels.reshape(outputs.shape[:-1]), outputs.shape[-1]).to(probabilities)
            return outputs, (probabilities - drawn).to(outputs)
        assert callable(self.importance)
        try:
            loss = self.importance(outputs, batch)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise BadInput(f"the loss given as importance= failed on (outputs, batch): {said}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
            raise BadInput("the loss given as importance= did not return one finite number")
        return loss, torch.full_like(loss, float(rows))

    def _unit(self, probes: int) -> float:
        """What D of one row of outputs is to be divided by."""
        mean = self.energy / (probes * max(1, self.rows))
        return mean if self.importance in RELATIVE and 0 < mean < math.inf else 1.0

    def _report(self, count: int) -> None:
        self.done += 1
        if self.progress is not None:
            total = max(self.done, (count_of(self.batches) or 0) * self.passes)
            self.progress(Progress("calibrating", self.done, total, self.done, total))


def _energy(outputs: Tensor, probe: Tensor) -> float:
    """The squared product of outputs and a probe of them, added up over the rows; of signs in expectation."""
    wanted = outputs.detach().double().masked_fill(never(outputs), 0.0)
    if bool(((probe.abs() == 1) | (probe == 0)).all()):
        return float(wanted.square().sum())
    rows = wanted * probe.double()
    return float(rows.reshape(-1, rows.shape[-1]).sum(1).square().sum())
