"""Passes over the batches: a traced forward pass, and a backward pass from each random probe of the outputs."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.calibration.batch_norm import statistics
from waterfill.calibration.cache import Measurement
from waterfill.calibration.combine import merge
from waterfill.calibration.moments import GradientSquares
from waterfill.calibration.probes import Cost, Loss
from waterfill.calibration.recorder import MomentRecorder, Selection
from waterfill.errors import BadInput
from waterfill.network.layout import VECTOR, Layout
from waterfill.network.running.batches import count_of, each_tensor, samples_in, shapes, tensors_in
from waterfill.network.running.forward import Forward, as_deployed, call
from waterfill.network.running.state import unchanged
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightViews
from waterfill.progress import Progress
from waterfill.storage.remarks import FEW_SAMPLES

_LARGE, _ONE_IN = 1 << 22, 4  # gradients of so many entries are computed in one of so many batches, where that will do


class Gathering:
    """The sums for the selected weights of a module.

    weights, layouts: of the module, by name. whole: whether a backward pass gives the gradient of a weight from all of
    its uses; else that of a weight whose products are recorded is not computed. spared: by parameter, batches whose
    gradient was left out.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Mapping[str, Tensor],
        layouts: Mapping[str, Layout],
        selection: Selection,
        seed: int = 0,
    ) -> None:
        matrices = {name: value for name, value in weights.items() if layouts[name].role != VECTOR}
        self.module = module
        self.whole = True
        self.recorder = MomentRecorder(layouts, selection, torch.Generator("cpu").manual_seed(seed + 1))
        self.tracer = Tracer(WeightViews(matrices, layouts), self.recorder)
        self.spared: Counter[str] = Counter()
        self._derived = {name: value for name, value in statistics(module).items() if name in selection.full}
        chosen = {name: layout for name, layout in layouts.items() if name in selection.full}
        self._squares = {name: GradientSquares(layout, selection.probes) for name, layout in chosen.items()}

    @contextmanager
    def differentiating(self) -> Iterator[dict[str, nn.Parameter]]:
        """A block with gradients, in which only the selected parameters require them."""
        selected = self.recorder.selection.full
        names = {*selected, *(value.source for value in self._derived.values())}
        with _differentiating(self.module, names) as parameters, torch.enable_grad():
            yield parameters

    def needed(self, parameters: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """The parameters whose gradient is to be computed in a batch, given by its number, after its traced pass.

        Not where its uses show it, nor each time where it is large and only corrects for their being several.
        """
        return {name: value for name, value in parameters.items() if self._is_needed(name, number)}

    def _is_needed(self, name: str, number: int) -> bool:
        if name in self.tracer.others:
            return True
        recorded = name in self.recorder.terms
        if not self.recorder.needs_gradient(name) or (recorded and not self.whole):
            return False
        large = self.recorder.layouts[name].entries >= _LARGE
        spared = number % _ONE_IN and recorded and large
        self.spared[name] += bool(spared)
        return not spared

    def add(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Add the gradients of parameters from one probe."""
        for name, squares in self._squares.items():
            derived = self._derived.get(name)
            gradient = gradients.get(name if derived is None else derived.source)
            if gradient is not None:
                squares.add(gradient if derived is None else gradient * derived.factor)

    def measurements(self, rows: int, unit: float, *, exact: bool = True) -> Iterator[tuple[str, Measurement]]:
        """The importance of each selected weight at the end, or the reason why it has none.

        rows: output rows. unit: of D. exact: whether the energy of a weight is that of its whole gradient.
        """
        for name, squares in self._squares.items():
            squares.add_known(*self.recorder.known(name))
            squares.spared = self.spared[name]
            about = {"samples": str(rows), "unit": repr(unit)}
            yield name, self._measurement(name, squares, about, exact)

    def _measurement(self, name: str, gradient: GradientSquares, about: dict[str, str], exact: bool) -> Measurement:
        recorder, tracer, rows = self.recorder, self.tracer, int(about["samples"])
        terms = list(recorder.terms.pop(name, {}).values())
        merged = merge(terms, recorder.layouts[name], rows, gradient if exact and gradient.count > 0 else None)
        calls = ", ".join(sorted(tracer.others.get(name, ())))
        if merged is not None:
            full = recorder.selection.full[name]
            about |= {} if full else {"note": "diagonal only: its Gram matrix is larger than the memory allowed"}
            return Measurement(merged[0], about | {"unmet": merged[1] if rows >= FEW_SAMPLES else ""})
        diagonal = gradient.importance(rows)
        if diagonal is not None and recorder.layouts[name].role == VECTOR:
            return Measurement(diagonal, about)
        if diagonal is not None:
            about |= {
                "note": f"diagonal only, of its gradient: used by {calls or 'other code'}",
                "unmet": gradient.unmet if rows >= FEW_SAMPLES else "",
            }
            return Measurement(diagonal, about)
        if calls:
            return Measurement(None, about | {"reason": f"used by {calls}, which passes no gradient to it"})
        reached = name in tracer.reached
        return Measurement(
            None, about | {"reason": "the outputs do not depend on it" if reached else "no batch reaches it"}
        )


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

    importance: see `calibrate`. passes: how many there will be. number: of the batch in this pass.
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

    def gather(
        self, weights: Mapping[str, Tensor], layouts: Mapping[str, Layout], selection: Selection
    ) -> Iterator[tuple[str, Measurement]]:
        """One pass over the batches: the measurement of each selected weight."""
        gathering = Gathering(self.model, weights, layouts, selection, self.seed)
        cost = Cost(self.importance, selection.probes)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        count = 0
        with as_deployed(self.model), gathering.differentiating() as parameters:
            for batch in self.batches:
                own, self.number = each_tensor(batch, Tensor.detach), count
                try:
                    with unchanged(self.model):
                        self._probe_all(own, (gathering, cost), parameters, generator)
                except BadInput as error:
                    raise BadInput(f"batch {count} of the calibration: {error}") from error
                count += 1
                self._report(count)
        if count == 0:
            raise BadInput("there are no batches to calibrate with; does the loader yield any, or was it used up?")
        yield from gathering.measurements(cost.rows, cost.unit, exact=not callable(self.importance))

    def _probe_all(
        self,
        batch: Any,
        sums: tuple[Gathering, Cost],
        parameters: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        """Run a batch forward and, for every probe, backward."""
        (gathering, cost), samples = sums, samples_in(batch)
        recorder = gathering.recorder
        recorder.begin(samples)
        if any(tensor.numel() == 0 for tensor in tensors_in(batch)) and samples == 0:
            raise BadInput(f"it holds no inputs, but {shapes(batch)}; leave such batches out")
        with gathering.tracer:
            outputs = call(self.model, batch, self.forward)
        gathering.tracer.views.forget()
        check_graph(outputs)
        draw = cost.draws(outputs, batch, generator)
        needed = gathering.needed(parameters, self.number)
        for probe in range(recorder.selection.probes):
            last = probe == recorder.selection.probes - 1
            what, at = draw()
            if what.requires_grad:
                differentiated = [*needed.values(), recorder.anchor]
                gradients = torch.autograd.grad(what, differentiated, at, retain_graph=not last, allow_unused=True)
                gathering.add(dict(zip(needed, map(_dense, gradients[:-1]), strict=True)))

    def _report(self, count: int) -> None:
        self.done += 1
        if self.progress is not None:
            total = max(self.done, (count_of(self.batches) or 0) * self.passes)
            self.progress(Progress("calibrating", self.done, total, self.done, total))


def check_graph(outputs: Tensor) -> None:
    """Raise BadInput for outputs that no gradient leads back from."""
    if not outputs.requires_grad:
        raise BadInput(
            "the outputs carry no gradient: the model runs without one (no_grad, inference_mode, a compiled or "
            "scripted module), or none of its weights reaches them"
        )


def _dense(gradient: Tensor | None) -> Tensor | None:
    """A gradient with all of its entries: embeddings can be told to leave out those of zero."""
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient
