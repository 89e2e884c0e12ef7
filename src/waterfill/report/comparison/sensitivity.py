"""What a network loses if one of its weights alone has few bits."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import AsSet, own_arithmetic
from waterfill.calibration.cache import fingerprint
from waterfill.calibration.calibrate import weights_of
from waterfill.errors import BadInput, BadRecipe
from waterfill.evaluation.paired import Scores, difference
from waterfill.evaluation.quality import Measure, measure_of
from waterfill.network.layout import Layout
from waterfill.network.running.forward import Forward, copy_of
from waterfill.progress import Progress, shown
from waterfill.report.comparison.kept import Kept, read
from waterfill.report.folded import Source, originals_of
from waterfill.report.layers import assumed_layers, is_matrix, measured_layers
from waterfill.report.listing import SHORT
from waterfill.report.markup import element
from waterfill.report.page.facts import finite
from waterfill.report.page.numbers import small
from waterfill.report.page.tables import Cell, Heading, table
from waterfill.report.rounding import BITS, GROUP, rounded, rounded_matrix
from waterfill.report.text import Column, screen
from waterfill.report.text import table as plain_table

KIND = "sensitivity"
MEASURED, PREDICTED = "measured", "predicted"


@dataclass(frozen=True)
class Row:
    """A weight: its name, shape, and by the number of bits what is lost if it alone has so many: infinitely much if
    outputs are not finite."""

    name: str
    shape: tuple[int, ...]
    losses: Mapping[int, float]


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` returns.

    Attributes:
        rows: one for each weight of two dimensions or more.
        unit: of the losses, and how they were found, in words.
    """

    rows: Sequence[Row]
    unit: str

    @property
    def bits(self) -> list[int]:
        """The numbers of bits that were tried."""
        return sorted({b for row in self.rows for b in row.losses})

    def ordered(self) -> list[Row]:
        """The rows, the most sensitive at the second fewest bits first."""
        key = self.bits[min(1, len(self.bits) - 1)] if self.bits else 0
        return sorted(self.rows, key=lambda row: -row.losses.get(key, 0.0))

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return {"unit": self.unit, "group": GROUP, "tensors": [_plain(row) for row in self.rows]}

    @classmethod
    def load(cls, path: "str | Path") -> "Sensitivity":
        """The sensitivity in a file that `sensitivity` wrote. Raises BadInput."""
        held = read(path, KIND)
        try:
            return cls([_row(row) for row in held["rows"].values()], f"{held['more'].get('unit', '')}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{path} holds rows that are not those of a sensitivity: {error}") from error

    def text(self, everything: bool = False) -> str:
        """The table in plain text, the most sensitive weight first."""
        rows = self.ordered()
        shown = rows if everything else rows[:SHORT]
        columns = [Column("tensor", text=True, least=32), Column("shape"), *(Column(f"{b} bits") for b in self.bits)]
        cells = [[row.name, "x".join(map(str, row.shape)), *self._cells(row)] for row in shown]
        lines = [f"loss in {self.unit}, if one weight alone is rounded in groups of {GROUP}", ""]
        lines.append(plain_table(columns, cells, screen()))
        lines += [f"... and {len(rows) - len(shown)} tensors more; --all shows each"] if len(shown) < len(rows) else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        headings = [Heading("tensor", text=True), Heading("shape"), *(Heading(f"{b} bits") for b in self.bits)]
        cells = [
            [Cell(row.name), Cell("x".join(map(str, row.shape))), *map(Cell, self._cells(row))]
            for row in self.ordered()
        ]
        about = f"Loss in {self.unit}, if one weight alone is rounded in groups of {GROUP}"
        return str(element("div", element("p", about), table(headings, cells, about)))

    def _cells(self, row: Row) -> list[str]:
        return [small(row.losses.get(b), 3) for b in self.bits]


def sensitivity(  # noqa: PLR0913 - how it is measured, and where it is kept
    model: Source,
    batches: Iterable[Any] | None = None,
    *,
    bits: Sequence[int] = BITS,
    metric: str = "divergence",
    predicted: bool = False,
    forward: Forward | None = None,
    work: "str | Path | None" = None,
    progress: "Callable[[Progress], None] | bool | None" = None,
) -> Sensitivity:
    """The loss of a network if one weight alone is rounded to few bits, in groups of 128 columns.

    With batches the network is run with each weight rounded in turn. Without them, or with `predicted`, nothing is run:
    the loss is what the importance says, in nats, as measured with the batches or assumed.

    Args:
        model: a module, which is not changed; without batches also a state dict or a checkpoint.
        batches: inputs, with targets where the metric needs them; a few hundred are plenty.
        bits: from 2 to 8.
        metric: divergence from the original (nats a row), or accuracy, top5, agreement, perplexity, nats.
        predicted: with batches, calibrate with them and predict; one pass instead of one for each weight and bits.
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.
        work: a JSON file that each weight is written to at once, from where the same call goes on.
        progress: as in `Options`.

    Raises:
        BadInput: batches without a module to run them; weights that are NaN.
        BadRecipe: bits that are not from 2 to 8.
        PlanMismatch: `work` is of another network, or of other inputs.

    Example:
        >>> print(report.sensitivity(model, inputs.split(32)).text())
    """
    if not bits or any(not isinstance(b, int) or not 2 <= b <= 8 for b in bits):
        raise BadRecipe(f"bits={list(bits)!r}: give whole numbers from 2 to 8")
    if batches is not None and not isinstance(model, nn.Module):
        raise BadInput("inputs are run by a module: give it as the model, with its weights loaded")
    given, how = None if batches is None else list(batches), AsSet.now(forward) if forward is not None else None
    measured = given is not None and not predicted
    unit = _unit(metric, measured, given is not None)
    about = _about(model, given, unit, bits)
    with own_arithmetic(), ExitStack() as stack:
        report = stack.enter_context(shown(progress))
        kept = stack.enter_context(Kept.at(work, KIND, about))
        kept.more["unit"] = unit
        if measured and given is not None and isinstance(model, nn.Module):
            measure = measure_of(metric, given, model, forward=how)
            _measure(model, measure, bits, kept, report)
        else:
            _predict(model, given, how, bits, kept)
        return Sensitivity([_row(row) for row in kept.rows.values()], unit)


def _unit(metric: str, measured: bool, inputs: bool) -> str:
    if measured:
        return {"divergence": "nats of divergence a row, measured"}.get(metric, f"{metric.replace('_', ' ')}, measured")
    return "nats, predicted from the importance measured with inputs" if inputs else "nats, assumed from the weights"


def _about(model: Source, batches: list[Any] | None, unit: str, bits: Sequence[int]) -> dict[str, Any]:
    weights = {name: original.load() for name, original in originals_of(model).items()}
    marks = fingerprint(weights, {}, batches or [])
    return marks | {"unit": unit, "bits": list(bits), "version": metadata.version("waterfill")}


def _predict(
    model: Source, batches: list[Any] | None, forward: Forward | None, bits: Sequence[int], kept: Kept
) -> None:
    """From the importance of every weight."""
    if batches is not None and isinstance(model, nn.Module):
        layers = measured_layers(model, batches, forward, fold=False)
    else:
        layers = assumed_layers(model)
    for name, layer in layers.weights.items():
        costs = rounded(layer.matrices(), bits)
        kept.rows[name] = _plain(Row(name, layer.layout.shape, {b: cost.nats for b, cost in costs.items()}))
    kept.write()


def _measure(
    model: nn.Module, measure: Measure, bits: Sequence[int], kept: Kept, report: "Callable[[Progress], None] | None"
) -> None:
    """By running the network with each weight rounded in turn."""
    network = copy_of(model)
    tensors, layouts = dict(network.state_dict()), weights_of(network)[1]
    names = [name for name, layout in layouts.items() if is_matrix(layout) and name in tensors]
    original = measure.scores(network)
    for i, name in enumerate(names):
        if name not in kept.rows:
            losses = {b: _loss(network, tensors[name], (layouts[name], b), measure, original) for b in bits}
            kept.add(name, _plain(Row(name, layouts[name].shape, losses)))
        if report is not None:
            report(Progress("measuring", i + 1, len(names), i + 1, len(names)))


@torch.no_grad()
def _loss(
    network: nn.Module, weight: Tensor, to: tuple[Layout, int], measure: Measure, original: "float | Scores"
) -> float:
    """What is lost with one weight of a network rounded; it is as before after."""
    layout, bits = to
    before = weight.clone()
    try:
        matrices = [rounded_matrix(matrix, bits) for matrix in layout.split(weight.cpu())]
        weight.copy_(layout.join(matrices))
        scores = measure.scores(network)
    except BadInput:  # outputs that are not finite: the original's were
        return math.inf
    finally:
        weight.copy_(before)
    if isinstance(scores, Scores) and isinstance(original, Scores):
        return difference(original, scores, measure.better).lost
    return measure.better * (float(original) - float(scores))  # type: ignore[arg-type]


def _plain(row: Row) -> dict[str, Any]:
    """A row for JSON; a loss without bounds is null."""
    return {
        "name": row.name,
        "shape": list(row.shape),
        "losses": finite({f"{b}": loss for b, loss in row.losses.items()}),
    }


def _row(row: Mapping[str, Any]) -> Row:
    losses = {int(b): math.inf if loss is None else float(loss) for b, loss in row["losses"].items()}
    return Row(f"{row['name']}", tuple(int(n) for n in row["shape"]), losses)
