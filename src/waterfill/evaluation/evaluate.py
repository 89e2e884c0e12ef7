"""The quality of a network on data, and its distance from a reference network: one pass, sums only."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.errors import BadInput
from waterfill.evaluation.metrics import Distance, Score, relative
from waterfill.evaluation.paired import Scores
from waterfill.evaluation.targets import Reader, Targets
from waterfill.network.running.batches import tensor_in
from waterfill.network.running.forward import Forward, as_deployed, hooked, layers_of
from waterfill.network.running.wrapped import unwrapped

Metric = Callable[[Tensor, Tensor | None], Tensor]
_TITLES = {
    "accuracy": ("correct (top 1)", "%"),
    "top5": ("among the best 5", "%"),
    "nats": ("log loss, nats a row", ""),
    "perplexity": ("perplexity", ""),
    "bits_per_token": ("bits a row (token)", ""),
    "bits_per_byte": ("bits a byte", ""),
    "divergence": ("divergence from the reference, nats a row", ""),
    "agreement": ("same best class as the reference", "%"),
    "output_error": ("output error relative to the reference", "%"),
}


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`; None where there were no targets or no reference, or the metric has no meaning.

    Attributes:
        batches: how many were run.
        rows: output rows, one for each distribution over the classes (an image, a token).
        accuracy: share of targets that are the class of the largest logit, 0 to 1.
        top5: share of targets among the five largest logits, 0 to 1; for ten classes or more.
        nats: mean of -log p(target).
        perplexity: exp(nats).
        bits_per_token: nats / ln 2.
        bits_per_byte: all bits over all bytes of the data.
        divergence: mean over the rows of KL(reference || model) of the softmax outputs, nats.
        agreement: share of rows whose largest logit is that of the reference, 0 to 1.
        output_error: norm of the difference of all outputs relative to that of the reference's.
        metrics: mean of each metric of the caller's.
        layers: by name in order of execution, the output error of each layer. Both networks are run whole on the same
            inputs, so that it includes the errors of the layers before.
        scores: by the name of the metric, input by input.
    """

    batches: int
    rows: int
    accuracy: float | None = None
    top5: float | None = None
    nats: float | None = None
    perplexity: float | None = None
    bits_per_token: float | None = None
    bits_per_byte: float | None = None
    divergence: float | None = None
    agreement: float | None = None
    output_error: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    layers: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """The numbers that were measured, for JSON; one that is not finite is null."""
        plain = {name: _jsonable(value) for name, value in vars(self).items() if value is not None and name != "scores"}
        return {name: value for name, value in plain.items() if value != {}}

    def text(self) -> str:
        """A table in plain text, a line for each number that was measured."""
        rows = [("batches", f"{self.batches}"), ("rows", f"{self.rows}")]
        for name, (title, unit) in _TITLES.items():
            value = getattr(self, name)
            if value is not None:
                rows.append((title, f"{100 * value:.2f} %" if unit else f"{value:.6g}"))
        rows += [(name, f"{value:.6g}") for name, value in self.metrics.items()]
        if self.layers:
            rows += [("", ""), ("layer (as the whole network runs)", "output error")]
            rows += [(name or "(the model)", f"{100 * error:.2f} %") for name, error in self.layers.items()]
        left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{title.ljust(left)}  {value.rjust(right)}".rstrip() for title, value in rows)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@by_own_arithmetic
def evaluate(  # noqa: PLR0913 - what is measured, and three ways in which users' batches differ
    model: nn.Module,
    batches: Iterable[Any],
    *,
    reference: nn.Module | None = None,
    targets: Targets = "last",
    metrics: Mapping[str, Metric] | None = None,
    forward: Forward | None = None,
    data_bytes: "int | Callable[[Any], int] | None" = None,
    logits: bool = True,
    layers: bool = False,
) -> Evaluation:
    """Measure a model on batches, and its distance from a reference.

    Outputs are logits [batch, classes] or [batch, time, classes]; targets are class numbers, of the same shape without
    the classes, and -100 does not count. A model that returns a loss for the labels of a dict is given them, and its
    loss shows whether an output predicts its own label or the one after it.

    Args:
        model: run in evaluation mode, and left as it was.
        batches: each a tensor of inputs, a tuple (inputs, ..., targets), or a dict of arguments by keyword.
        reference: the original, for divergence, agreement and output error.
        targets: "last": the last item of a tuple of two or more, or "targets" or "labels" of a dict, which is then no
            input. None: there are none. A function (batch) -> class numbers: all of the batch is input.
        metrics: further metrics by name, (outputs, targets or None) -> a value for each row; where each output predicts
            the next label, outputs and targets are already cut to fit.
        forward: (model, inputs) -> outputs, where inputs are not simply the arguments.
        data_bytes: of all the data that the targets stand for, or (batch) -> those of a batch; for bits per byte.
        logits: False for outputs that are no logits, which have neither accuracy nor divergence.
        layers: measure the output error of every layer too; needs a reference.

    Raises:
        BadInput: no batches, outputs that are NaN or infinite, shapes that do not fit, targets that are the inputs
            themselves or disagree with the model's own loss.

    Example:
        >>> result = waterfill.evaluate(small.install(Net()), loader, reference=model)
        >>> print(result.accuracy, result.divergence)
    """
    if layers and reference is None:
        raise BadInput("layers=True compares the layers with those of a reference; give reference=")
    task = _Task(Reader(targets, forward), data_bytes, logits, dict(metrics or {}))
    models = [model] if reference is None else [model, reference]
    with as_deployed(*models):
        for batch in batches:
            task.measure(batch, model, reference, layers)
    return task.result(reference is not None)


class _Layers:
    """Squared errors of the layers' outputs, the calls of a layer in both networks paired by their order."""

    def __init__(self) -> None:
        self._outputs: dict[str, list[Tensor]] = defaultdict(list)
        self._sums: dict[str, tuple[float, float]] = {}

    def remember(self, name: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        """Hook of a layer of the reference: keep its output."""
        tensor = tensor_in(output)
        if tensor is not None:
            self._outputs[name].append(tensor.clone())  # layers that follow may write into it

    def compare(self, name: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        """Hook of the same layer of the model: add its error to the sums."""
        tensor = tensor_in(output)
        if tensor is None or not self._outputs[name]:
            return
        expected, actual = self._outputs[name].pop(0).double(), tensor.double()
        if expected.shape == actual.shape:
            error, energy = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (
                error + float((actual - expected).square().sum()),
                energy + float(expected.square().sum()),
            )

    def forget(self) -> None:
        """Drop the outputs that were kept, at the end of a batch."""
        self._outputs.clear()

    @property
    def errors(self) -> dict[str, float]:
        """Relative errors by name, in order of execution."""
        return {name: relative(*sums) for name, sums in self._sums.items()}


@dataclass
class _Task:
    """The sums of one evaluation, and how its batches are to be read."""

    reader: Reader
    data_bytes: "int | Callable[[Any], int] | None"
    logits: bool
    metrics: dict[str, Metric]
    batches: int = 0
    rows: int = 0
    bytes: int = 0
    score: Score = field(default_factory=Score)
    distance: Distance = field(default_factory=Distance)
    means: dict[str, tuple[float, int]] = field(default_factory=dict)
    layers: _Layers = field(default_factory=_Layers)

    def measure(self, batch: Any, model: nn.Module, reference: nn.Module | None, layers: bool) -> None:
        with ExitStack() as hooks:
            if reference is not None:
                if layers:
                    hooks.enter_context(hooked(layers_of(unwrapped(reference)), self.layers.remember))
                    hooks.enter_context(hooked(layers_of(unwrapped(model)), self.layers.compare))
                expected, _ = self._run(reference, batch, "reference")
            outputs, loss = self._run(model, batch, "model")
        self.layers.forget()
        if reference is not None:
            self.distance.add(outputs, expected, self.logits)
        kept, targets = self._aligned(batch, outputs, loss)
        if targets is not None and self.logits:
            self.score.add(kept, targets)
        for name, metric in self.metrics.items():
            value = torch.as_tensor(metric(kept, targets), dtype=torch.float64, device="cpu")
            total, count = self.means.get(name, (0.0, 0))
            self.means[name] = total + float(value.sum()), count + value.numel()
        self.batches += 1
        self.rows += outputs.shape[:-1].numel()
        if self.data_bytes is not None:
            self.bytes = self.data_bytes if isinstance(self.data_bytes, int) else self.bytes + self.data_bytes(batch)

    def _run(self, model: nn.Module, batch: Any, which: str) -> tuple[Tensor, float | None]:
        try:
            return self.reader.run(model, batch)
        except BadInput as error:
            raise BadInput(f"batch {self.batches} of the evaluation, {which}: {error}") from error

    def _aligned(self, batch: Any, outputs: Tensor, loss: float | None) -> tuple[Tensor, Tensor | None]:
        """The outputs and targets to compare; targets are not shifted where outputs are no logits."""
        try:
            return self.reader.aligned(batch, outputs, loss if self.logits else None, self.logits)
        except BadInput as error:
            raise BadInput(f"batch {self.batches} of the evaluation: {error}") from error

    def result(self, compared: bool) -> Evaluation:
        if self.batches == 0:
            raise BadInput("there are no batches to evaluate on; does the loader yield any, or was it used up before?")
        score, distance, values = self.score, self.distance, dict[str, float | None]()
        if score.rows:
            nats = score.nats / score.rows
            values = {"accuracy": score.first / score.rows, "nats": nats, "bits_per_token": nats / math.log(2)}
            values["perplexity"] = math.exp(nats) if nats < 700 else math.inf
            values["top5"] = None if score.five is None else score.five / score.rows
            values["bits_per_byte"] = score.nats / math.log(2) / self.bytes if self.bytes else None
        if compared:
            values["output_error"] = distance.relative
            if self.logits:
                values["divergence"] = distance.divergence
                values["agreement"] = distance.agreeing / max(1, distance.rows)
        means = {name: total / max(1, count) for name, (total, count) in self.means.items()}
        scores = score.scores() | distance.scores()
        return Evaluation(self.batches, self.rows, metrics=means, layers=self.layers.errors, scores=scores, **values)
