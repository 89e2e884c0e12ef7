"""Sums over output rows for the quality of a network and its distance from another; no output is kept.

An output row is one distribution: outputs [rows, classes] or [batch, time, classes], the last dimension the classes.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.evaluation.paired import Scores
from waterfill.network.running.batches import never

IGNORED = -100
"""The target that does not count, as in torch.nn.functional.cross_entropy."""
_ENTRIES_AT_A_TIME = 1 << 18  # entries in float64 at a time, which the cache holds
_SMALL = 0.1  # differences of logits; below, differences of log-probabilities cancel in rounding
_SERIES = 1e-4  # below, the first two terms of a series are exact, and e^d - 1 - d is not
_FIVE = 10  # classes; with fewer, top 5 means little


@dataclass
class Score:
    """How well logits predict targets: rows, of these correct (`first`) and in the top five, and log loss in nats.

    inputs: the same sums input by input, [4, inputs of a batch] for every batch: rows, first, five, nats. targets: how
    often each class was a target.
    """

    rows: int = 0
    first: int = 0
    five: int | None = 0
    nats: float = 0.0
    classes: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    targets: Counter[int] = field(default_factory=Counter)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count outputs [inputs, ..., classes] against class numbers [inputs, ...]. Raises BadInput."""
        _check(outputs, targets)
        self.classes = outputs.shape[-1]
        kept = targets.reshape(-1) != IGNORED
        flat, classes = outputs.reshape(-1, outputs.shape[-1])[kept], targets.reshape(-1)[kept].long()
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < flat.shape[1]:
            raise BadInput(
                f"targets run from {classes.min()} to {classes.max()}, the outputs have {flat.shape[1]} classes"
            )
        self.five = None if flat.shape[1] < _FIVE else self.five
        pieces = zip(*_pieces(flat, classes), strict=True)
        rows = torch.cat([self._rows(logits, numbers) for logits, numbers in pieces], 1)
        self.rows += len(classes)
        self.first += int(rows[1].sum())
        self.five = None if self.five is None else self.five + int(rows[2].sum())
        self.nats += float(rows[3].sum())
        own = torch.nonzero(kept).reshape(-1).cpu() // max(1, targets[0].numel() if len(targets) else 1)
        sums = torch.zeros(4, len(targets), dtype=torch.float64, device=rows.device)
        self.inputs.append(sums.index_add_(1, own, rows))
        self.targets.update(classes.tolist())

    def _rows(self, logits: Tensor, classes: Tensor) -> Tensor:
        """For every row 1, whether it is correct, whether in the top five, and its nats: [4, rows], float64."""
        own = logits.gather(1, classes[:, None])
        nats = logits.double().logsumexp(1) - own[:, 0].double()
        right = logits.argmax(1) == classes
        five = (logits.topk(5, 1).indices == classes[:, None]).any(1) if self.five is not None else right
        return torch.stack([torch.ones_like(nats), right.double(), five.double(), nats]).cpu()

    def scores(self) -> dict[str, Scores]:
        """Scores input by input, by the name of the metric; empty where no target counted."""
        if not self.rows:
            return {}
        rows, first, five, nats = torch.cat(self.inputs, 1)
        often = sorted(self.targets.values(), reverse=True)
        scores = {
            "accuracy": Scores(first, rows, chance=often[0] / self.rows, step=1.0),
            "nats": Scores(nats, rows, chance=math.log(self.classes)),
            "perplexity": Scores(nats, rows, exponential=True, chance=float(self.classes)),
        }
        if self.five is not None:
            scores["top5"] = Scores(five, rows, chance=sum(often[:5]) / self.rows, step=1.0)
        return scores


@dataclass
class Distance:
    """Distance of outputs from those of a reference, in sums.

    rows: how many. nats: KL(reference || outputs). agreeing: rows with the same best class. error, energy: squared
    norms of the difference and of the reference. inputs: rows, nats and agreeing rows input by input.
    """

    rows: int = 0
    nats: float = 0.0
    agreeing: int = 0
    error: float = 0.0
    energy: float = 0.0
    inputs: list[Tensor] = field(default_factory=list)

    def add(self, outputs: Tensor, reference: Tensor, logits: bool = True) -> None:
        """Count outputs [inputs, ..., classes] of both. Raises BadInput if their shapes differ."""
        actual, expected = rows_of(outputs, reference)
        self.error += float(squared_errors(actual, expected).sum())
        self.energy += float(squared_errors(torch.zeros_like(expected), expected).sum())
        if logits and actual.shape[1] > 1:
            nats, same = divergences(actual, expected), actual.argmax(1) == expected.argmax(1)
            self.nats += float(nats.sum())
            self.agreeing += int(same.sum())
            values = torch.stack([torch.ones_like(nats), nats, same.double()]).cpu()
            self.inputs.append(values.reshape(3, len(outputs), -1).sum(2))
        self.rows += len(actual)

    def scores(self) -> dict[str, Scores]:
        """Scores input by input, by the name of the metric; empty where the outputs are no logits."""
        if not self.inputs:
            return {}
        rows, nats, same = torch.cat(self.inputs, 1)
        return {"divergence": Scores(nats, rows), "agreement": Scores(same, rows, step=1.0)}

    @property
    def divergence(self) -> float:
        """Mean over the rows, nats; at least 0, whatever rounding does."""
        return max(0.0, self.nats / max(1, self.rows))

    @property
    def relative(self) -> float:
        """Norm of the error relative to that of the reference."""
        return relative(self.error, self.energy)


def rows_of(outputs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [rows, classes], minus infinity where the reference is masked. Raises BadInput for other shapes."""
    if outputs.shape != reference.shape:
        raise BadInput(
            f"the model's outputs are {list(outputs.shape)}, the reference's {list(reference.shape)}; "
            "they must be the same network"
        )
    width = outputs.shape[-1] if outputs.ndim else 1
    actual, expected = outputs.reshape(-1, width), reference.reshape(-1, width)
    if expected.is_floating_point() and bool((hidden := never(expected)).any()):
        actual, expected = (x.masked_fill(hidden, -math.inf) for x in (actual, expected))
        nothing = hidden.all(1, keepdim=True)
        actual, expected = (x.masked_fill(nothing, 0.0) for x in (actual, expected))
    return actual, expected


def divergences(outputs: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || outputs) of the softmax of every row of logits [rows, classes]; [rows], nats, float64.

    With p of the reference and small differences d of the logits, moved to a mean of zero under p, it is the logarithm
    of 1 + sum p (e^d - 1 - d): exact for logits of any unit. Masked classes do not count.
    """

    def nats(actual: Tensor, expected: Tensor) -> Tensor:
        log_q, log_p = actual.double().log_softmax(1), expected.double().log_softmax(1)
        p = log_p.exp()
        whole = (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(1)
        d = _gaps(actual, expected)
        d = (d - (p * d).sum(1, keepdim=True)).masked_fill(p == 0, 0.0)
        curved = torch.where(d.abs() < _SERIES, d.square() / 2 + d**3 / 6, d.expm1() - d)
        return torch.where(d.abs().amax(1) < _SMALL, (p * curved).sum(1).log1p(), whole)

    return torch.cat([nats(a, b) for a, b in zip(*_pieces(outputs, reference), strict=True)])


def squared_errors(outputs: Tensor, reference: Tensor) -> Tensor:
    """Squared norm of the difference of every row of [rows, classes]; [rows], float64."""
    pieces = zip(*_pieces(outputs, reference), strict=True)
    return torch.cat([_gaps(a, b).square().sum(1) for a, b in pieces])


def _gaps(outputs: Tensor, reference: Tensor) -> Tensor:
    """Differences, float64; none where the reference is minus infinity."""
    return (outputs.double() - reference.double()).masked_fill(reference.isneginf(), 0.0)


def centered(logits: Tensor) -> Tensor:
    """Logits [rows, classes] minus the mean of each row, masked classes excepted."""
    hidden = logits.isneginf()
    total, count = logits.masked_fill(hidden, 0.0).sum(1, keepdim=True), (~hidden).sum(1, keepdim=True)
    return logits - total / count.clamp_min(1)


def relative(error: float, energy: float) -> float:
    """sqrt(error / energy) of two squared norms; infinite for an error where the energy is zero."""
    return math.sqrt(error / energy) if energy > 0 else 0.0 if error == 0 else math.inf


def _check(outputs: Tensor, targets: Tensor) -> None:
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise BadInput(f"targets are {targets.dtype}; give class numbers, or targets=None and metrics= of your own")
    if outputs.ndim < 2 or targets.shape != outputs.shape[:-1]:
        raise BadInput(
            f"outputs are {list(outputs.shape)}, targets {list(targets.shape)}; the last dimension of the outputs is "
            "the classes, the others are those of the targets (give forward= to bring them in that order)"
        )


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors of as many rows each in slices of rows, so that temporaries stay small."""
    rows = max(1, _ENTRIES_AT_A_TIME // max(1, tensors[0].shape[1]))
    return [tensor.split(rows) for tensor in tensors]
