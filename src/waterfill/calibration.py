"""Importance from data: what an error in each weight costs the outputs of a network on given inputs.

One forward and `probes` backward passes a batch; no labels. Matrices are gathered for as many weights at once as memory
allows, and written to a folder, if there is one, as soon as they are finished.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from waterfill.capture import Capture
from waterfill.engine import Progress, tensors_of
from waterfill.errors import BadInput
from waterfill.importance import Importance
from waterfill.layout import KERNEL, MATRIX, STACK, VECTOR, Layout, layout_of
from waterfill.merging import merge
from waterfill.moments import Slope, bytes_of
from waterfill.running import Forward, as_deployed, call, tensor_in
from waterfill.shelf import Found, Shelf, fingerprint
from waterfill.uses import Plan, Uses

Loss = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> scalar, the mean over the rows of the outputs."""
OUTPUTS, FISHER = "outputs", "fisher"


class Calibration(Mapping[str, Importance]):
    """Importance by the names of weights, and of vectors of parameters, read from disk when asked for if in a cache.

    unreached: why the other weights with two or more dimensions have none. samples: rows of outputs that were seen
    (images, or tokens). notes: remarks by name.
    """

    def __init__(self, shelf: Shelf, vectors: Container[str]) -> None:
        self._shelf = shelf
        found = {name: shelf.about(name) for name in shelf.names}
        missing = {name: about["reason"] for name, about in found.items() if about.get("reason")}
        self.unreached = {name: reason for name, reason in missing.items() if name not in vectors}
        self.notes = {name: about["note"] for name, about in found.items() if about.get("note")}
        self.samples = max((int(about.get("samples", 0)) for about in found.values()), default=0)
        self._names = [name for name in shelf.names if name not in missing]

    def __getitem__(self, name: str) -> Importance:
        if name not in self._names:
            raise KeyError(name)
        return self._shelf.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Calibration({len(self)} weights, {len(self.unreached)} unreached, {self.samples} samples)"


def calibrate(  # noqa: PLR0913 - what is asked for, how a batch is run, and where the results go
    model: nn.Module,
    batches: Iterable[Any],
    *,
    importance: "str | Loss" = OUTPUTS,
    probes: int = 1,
    cache: Path | None = None,
    forward: Forward | None = None,
    progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    memory: int = 1 << 30,
) -> Calibration:
    """The importance of every weight, bias and other parameter that the batches reach; D is in squared outputs.

    A batch is a tensor, a tuple of arguments, or a dict of them by keyword; `forward(model, batch)` where it is none.
    importance: "outputs", Gauss-Newton weights of the squared error of the outputs, by random signs at each of them;
    "fisher", the gradient of the log likelihood of labels drawn from the model's own softmax over the last dimension;
    or a loss (outputs, batch) -> scalar, the mean over the rows of the outputs. D counts per output row (image, token).
    probes: backward passes a batch. cache: a folder to keep the results in and to go on from. memory: bytes of Gram
    matrices gathered in one pass over the batches, which must then be iterable again; without a cache all are gathered
    in one pass, and a matrix that alone is larger is gathered as its diagonal only. The model comes back as it was.
    Raises BadInput: no batches, a batch the model cannot take, values that are not finite, outputs without a gradient;
    PlanMismatch for a cache of another model or of other options.
    """
    if probes < 1 or memory < 1:
        raise BadInput(f"probes={probes}, memory={memory}: give 1 or more")
    if not callable(importance) and importance not in (OUTPUTS, FISHER):
        raise BadInput(
            f'importance={importance!r}; it is "{OUTPUTS}", "{FISHER}" or a function (outputs, batch) -> loss'
        )
    if isinstance(batches, Tensor | Mapping | str):
        raise BadInput("batches are a sequence of inputs; one batch alone is [batch], many inputs are inputs.split(32)")
    weights, layouts = weights_of(model)
    options = {"importance": getattr(importance, "__qualname__", importance), "probes": probes, "seed": seed}
    shelf = Shelf.open(cache, list(layouts), fingerprint(weights, options, batches) if cache else {})
    passes = _passes(layouts, [name for name in layouts if name not in shelf], memory, cache is not None)
    if len(passes) > 1 and iter(batches) is batches:
        raise BadInput(
            f"{len(passes)} passes over the batches are needed with memory={memory}, and these can be read only once: "
            "give a list or a loader, or more memory"
        )
    run = _Run(model, batches, importance, forward, seed, progress, len(passes))
    for wanted in passes:
        for name, found in run.gather(weights, Plan(layouts, wanted, probes)):
            shelf.put(name, found)
    return Calibration(shelf, {name for name, layout in layouts.items() if layout.role == VECTOR})


def weights_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Layout]]:
    """The weights of a model and its vectors of parameters, tied ones once, and their layouts."""
    tensors, _, roles = tensors_of(model)
    layouts = {name: layout_of(tuple(t.shape), t.dtype, roles.get(name)) for name, t in tensors.items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    layouts = {
        name: layout
        for name, layout in layouts.items()
        if layout.role in (MATRIX, KERNEL, STACK) or (layout.role == VECTOR and name in parameters)
    }
    return {name: tensors[name] for name in layouts}, layouts


def _passes(layouts: Mapping[str, Layout], names: Iterable[str], memory: int, several: bool) -> list[dict[str, bool]]:
    """Weights to gather together, and whether their whole Gram matrices."""
    passes: list[dict[str, bool]] = []
    room = 0
    for name in names:
        size = bytes_of(layouts[name])
        full = size <= memory and layouts[name].role != VECTOR
        size = size if full else 0
        if not passes or (several and size > room):
            passes.append({})
            room = memory
        passes[-1][name] = full
        room -= size
    return passes


@contextmanager
def _asked(model: nn.Module, wanted: Container[str]) -> Iterator[dict[str, nn.Parameter]]:
    """The wanted parameters, which alone ask for a gradient inside the block; after it, all ask as they did before."""
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name: value for name, value in named.items() if name in wanted}
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
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
class _Run:
    """Passes over the batches."""

    model: nn.Module
    batches: Iterable[Any]
    importance: "str | Loss"
    forward: Forward | None
    seed: int
    progress: Callable[[Progress], None] | None
    passes: int
    done: int = 0
    rows: int = field(default=0)

    def gather(self, weights: Mapping[str, Tensor], plan: Plan) -> Iterator[tuple[str, Found]]:
        """One pass: what was found of each wanted weight."""
        matrices = {name: value for name, value in weights.items() if plan.layouts[name].role != VECTOR}
        uses = Uses(matrices, plan, torch.Generator().manual_seed(self.seed + 1))
        capture = Capture(uses)
        generator = torch.Generator().manual_seed(self.seed)
        self.rows = 0
        count = 0
        with as_deployed(self.model), _asked(self.model, plan.wanted) as parameters, torch.enable_grad():
            slopes = {name: Slope(plan.layouts[name], plan.probes) for name in parameters}
            for batch in self.batches:
                try:
                    for gradients in self._probe_all(_detached(batch), capture, list(parameters.values()), generator):
                        for slope, gradient in zip(slopes.values(), gradients, strict=True):
                            if gradient is not None:
                                slope.add(gradient)
                except BadInput as error:
                    raise BadInput(f"batch {count} of the calibration: {error}") from error
                count += 1
                self._report(count)
        if count == 0:
            raise BadInput("there are no batches to calibrate with; does the loader yield any, or was it used up?")
        for name in plan.wanted:
            yield name, self._found(name, capture, slopes.get(name))

    def _found(self, name: str, capture: Capture, slope: Slope | None) -> Found:
        """The importance of a weight at the end of a pass, or why it has none."""
        uses, about = capture.uses, {"samples": str(self.rows)}
        terms = list(uses.terms.pop(name, {}).values())
        found = merge(terms, uses.plan.layouts[name], self.rows, None if callable(self.importance) else slope)
        calls = ", ".join(sorted(capture.others.get(name, ())))
        if found is not None:
            full = uses.plan.wanted[name]
            about |= {} if full else {"note": "diagonal only: its Gram matrix is larger than the memory allowed"}
            return Found(found, about)
        found = None if slope is None else slope.importance(self.rows)
        if found is not None and uses.plan.layouts[name].role == VECTOR:
            return Found(found, about)
        if found is not None:
            return Found(found, about | {"note": f"diagonal only, of its gradient: used by {calls or 'other code'}"})
        if calls:
            return Found(None, about | {"reason": f"used by {calls}, which passes no gradient to it"})
        reached = name in capture.reached
        return Found(None, about | {"reason": "the outputs do not depend on it" if reached else "no batch reaches it"})

    def _probe_all(
        self, batch: Any, capture: Capture, parameters: Sequence[Tensor], generator: torch.Generator
    ) -> Iterator[Sequence[Tensor | None]]:
        """Run a batch forward and, for every probe, backward: the gradients of the parameters."""
        uses = capture.uses
        uses.samples = _samples(batch)
        with capture:
            outputs = call(self.model, batch, self.forward)
        uses.forget()
        if not outputs.requires_grad:
            raise BadInput(
                "the outputs carry no gradient: the model runs without one (no_grad, inference_mode, a compiled or "
                "scripted module), or none of its weights reaches them"
            )
        rows = outputs.numel() // outputs.shape[-1] if outputs.ndim > 1 else outputs.numel()
        self.rows += rows
        for probe in range(uses.plan.probes):
            last = probe == uses.plan.probes - 1
            what, at = self._probe(outputs, batch, rows, generator)
            if what.requires_grad:
                asked = [*parameters, uses.anchor]
                yield torch.autograd.grad(what, asked, at, retain_graph=not last, allow_unused=True)[:-1]

    def _probe(self, outputs: Tensor, batch: Any, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What to differentiate and the gradient at it."""
        if self.importance == OUTPUTS:
            signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs)
            return outputs, signs * 2 - 1
        if self.importance == FISHER:
            chances = outputs.detach().float().softmax(-1)
            labels = torch.multinomial(chances.reshape(-1, chances.shape[-1]).cpu(), 1, generator=generator)
            drawn = F.one_hot(labels.reshape(outputs.shape[:-1]), outputs.shape[-1]).to(chances)
            return outputs, (chances - drawn).to(outputs)
        assert callable(self.importance)
        loss = self.importance(outputs, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
            raise BadInput("the loss given as importance= did not return one finite number")
        return loss, torch.full_like(loss, float(rows))

    def _report(self, count: int) -> None:
        self.done += 1
        if self.progress is not None:
            length = getattr(self.batches, "__len__", None)
            total = max(self.done, length() * self.passes if length is not None else 0)
            self.progress(Progress("calibrating", self.done, total, self.done, total))


def _samples(batch: Any) -> int:
    """Inputs in a batch: the first dimension of its first tensor; 0 if there is none."""
    found = tensor_in(batch)
    return len(found) if found is not None and found.ndim else 0


def _detached(batch: Any) -> Any:
    """A batch whose tensors ask for no gradient."""
    if isinstance(batch, Tensor):
        return batch.detach()
    if isinstance(batch, Mapping):
        return {key: _detached(value) for key, value in batch.items()}
    return type(batch)(map(_detached, batch)) if type(batch) in (tuple, list) else batch
