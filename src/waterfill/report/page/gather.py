"""Finds out what a report says: one pass over the tensors of a file, one of them in memory at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from waterfill.model.lazy import CompressedTensors
from waterfill.network.channels.sizes import NOTE
from waterfill.network.layout import can_be_rounded
from waterfill.report.differences import compare
from waterfill.report.folded import Source
from waterfill.report.layers import Layer, Layers, assumed_layers, measured_layers
from waterfill.report.listing import Item, Listing, read_listing
from waterfill.report.page.facts import Facts, Point, Quality, Row
from waterfill.report.page.histograms import chosen, histogram
from waterfill.report.page.qualities import Run, output_errors, qualities
from waterfill.report.rounding import BITS, GROUP, Rounded, rounded
from waterfill.storage import FileReader
from waterfill.theory import NetworkLimit, Spectrum

_LEVELS = 40  # points of the curve of the bound
_MOST_BITS = 8.5
_LEAST_BITS = 0.1
FILE = "this file"


@dataclass
class _Pass:
    """What is gathered tensor by tensor."""

    layers: Layers | None
    pictured: set[str]
    rows: dict[str, Row] = field(default_factory=dict)
    spectra: dict[str, tuple[Spectrum, ...]] = field(default_factory=dict)
    rounding: dict[str, dict[int, Rounded]] = field(default_factory=dict)
    pictures: dict[str, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    def see(self, item: Item, restored: Tensor, original: Tensor | None = None) -> None:
        """Take what is to be known of a tensor."""
        row = Row(item)
        if can_be_rounded(restored.dtype) and restored.numel():
            row = replace(row, zeros=float((restored == 0).double().mean()))
        if restored.ndim > 1 and row.zeros:
            alive = (restored != 0).reshape(*restored.shape[:2], -1).any(2)
            row = replace(row, dead=(int((~alive.any(1)).sum()), int((~alive.any(0)).sum())))
        if item.name in self.pictured:
            self.pictures[item.name] = original, restored
        layer = None if self.layers is None else self.layers.weights.get(item.name)
        if layer is not None and layer.layout.shape == tuple(restored.shape):
            row = self._priced(row, layer, restored)
        self.rows[item.name] = row

    def _priced(self, row: Row, layer: Layer, restored: Tensor) -> Row:
        pairs = layer.matrices()
        self.spectra[row.item.name] = tuple(Spectrum.of(target, importance) for target, importance in pairs)
        self.rounding[row.item.name] = costs = rounded(pairs)
        back = layer.layout.split(restored)
        nats = sum(own.distortion(target - found) for (target, own), found in zip(pairs, back, strict=True))
        return replace(row, nats=float(nats), sensitivity={bits: cost.nats for bits, cost in costs.items()})


@dataclass(frozen=True)
class Wanted:
    """What a report is about. against: the original, if it is known. run: its network and inputs, if they are."""

    path: str
    title: str
    against: Source | None = None
    run: Run | None = None


def gather(wanted: Wanted) -> Facts:
    """The facts of a file. Raises CorruptFile, NewerFormat, BadInput; VerifyError for an original that is another's."""
    with FileReader(wanted.path) as src:
        tensors, listing = CompressedTensors(src), read_listing(src)
        pictured = chosen(listing.items)
        seen = _Pass(_layers_of(wanted, listing), pictured)
        error = _look(tensors, listing, wanted.against, seen)
        weights = [
            histogram(name, *seen.pictures.pop(name), tensors.entry(name).parts)
            for name in sorted(pictured, key=list(seen.rows).index)
        ]
    rows = list(seen.rows.values())
    found: list[Quality] = []
    if wanted.run is not None:
        found = qualities(wanted.path, wanted.run)
        errors = output_errors(wanted.path, wanted.run, folded=bool(listing.folds))
        rows = [replace(row, output_error=errors.get(_owner(row.item))) for row in rows]
    measured = seen.layers is not None and seen.layers.measured
    facts = Facts(wanted.title, listing, rows, error, measured, quality=found, weights=weights)
    facts = replace(facts, removed=_removed(listing.notes))
    return _with_curves(facts, seen) if seen.spectra else facts


def _owner(item: Item) -> str:
    """The layer of a matrix; no layer's name for other tensors."""
    return item.name.rpartition(".")[0] if len(item.shape) > 1 else item.name


def _layers_of(wanted: Wanted, listing: Listing) -> Layers | None:
    """What errors cost; None without an original."""
    if wanted.against is None:
        return None
    if wanted.run is not None:
        fold = bool(listing.folds)
        layers = measured_layers(wanted.run.original, wanted.run.batches, wanted.run.forward, fold=fold)
    else:
        layers = assumed_layers(wanted.against, listing.folds or ())
    own = {listing.aliases.get(name, name): layer for name, layer in layers.weights.items()}
    return replace(layers, weights=own)


def _look(tensors: CompressedTensors, listing: Listing, against: Source | None, seen: _Pass) -> float | None:
    """Show every tensor to the pass; the relative error of all weights, if the original is known."""
    if against is not None:
        return compare(tensors, listing, against, seen.see).error
    for item in listing.items:
        seen.see(item, tensors[item.name])
    return None


def _with_curves(facts: Facts, seen: _Pass) -> Facts:
    """With the bound, this file and plain rounding, all of the weights that the bound covers."""
    network, sizes = NetworkLimit(seen.spectra), {row.item.name: row.item.bytes for row in facts.rows}
    entries = max(1, network.entries)
    rate = 8 * sum(sizes[name] for name in seen.spectra) / entries
    nats = sum(row.nats or 0.0 for row in facts.rows)
    quality = facts.quality[0].file if facts.quality else None
    points = [Point(FILE, facts.listing.size, facts.listing.bits, rate, nats or None, quality)]
    for bits in BITS:
        costs = [costs[bits] for costs in seen.rounding.values()]
        spent = sum(cost.spent for cost in costs) / entries
        points.append(Point(f"rounding, groups of {GROUP}", rate=spent, nats=sum(cost.nats for cost in costs)))
    unit = "nats, from the importance measured with inputs" if facts.measured else "nats, assumed from the weights"
    facts = replace(facts, bound=_bound(network), points=points, sensitivity_in=unit)
    return (
        replace(facts, metric=facts.quality[0].metric, reference=facts.quality[0].original) if facts.quality else facts
    )


def _bound(network: NetworkLimit) -> list[tuple[float, float]]:
    """The curve from few bits to many."""
    high, low = network.at_rate(_LEAST_BITS).level, network.at_rate(_MOST_BITS).level
    if not 0 < low < high:
        return []
    limits = network.curve(high * (low / high) ** (i / (_LEVELS - 1)) for i in range(_LEVELS))
    return [(limit.rate, limit.nats) for limit in limits if limit.nats > 0]


def _removed(notes: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The sizes of the layers that lost channels, as far as the notes of a file say them in a writer's words."""
    noted = notes.get(NOTE)
    pairs: Iterable[tuple[Any, Any]] = noted.items() if isinstance(noted, Mapping) else ()
    sizes = {f"{name}": value for name, value in pairs if isinstance(value, Mapping)}
    return {name: {f"{k}": v for k, v in value.items() if type(v) is int} for name, value in sizes.items()}
