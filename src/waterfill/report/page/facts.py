"""What a report says, before it is drawn: plain numbers, as they stand in `report.json` too."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from waterfill.report.listing import Item, Listing


@dataclass(frozen=True)
class Row:
    """A tensor of the file.

    zeros: share of its entries that are exactly zero. dead: how many indices of its first and second dimension, outputs
    and inputs of most layers, are zero throughout. nats: the predicted cost of its errors. output_error: that of its
    layer's outputs as the whole network runs, relative. sensitivity: loss if it alone is rounded, by bits. None or
    empty where it was not measured.
    """

    item: Item
    zeros: float | None = None
    dead: tuple[int, int] = (0, 0)
    nats: float | None = None
    output_error: float | None = None
    sensitivity: Mapping[int, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The row for JSON."""
        found = {"zeros": self.zeros, "nats": self.nats, "output_error": self.output_error}
        dead = {"dead_outputs": self.dead[0], "dead_inputs": self.dead[1]} if self.zeros is not None else {}
        sensitivity = {f"{bits}": value for bits, value in self.sensitivity.items()}
        more = {"sensitivity": sensitivity} if sensitivity else {}
        return self.item.as_json() | {key: value for key, value in found.items() if value is not None} | dead | more


@dataclass(frozen=True)
class Weight:
    """A weight before and after. edges: [n + 1] of the bins; before: counts in them, or nothing without an original;
    after: counts. codes: how often each code from `low` on occurs, and how often the coder expects it."""

    name: str
    edges: Sequence[float]
    before: Sequence[float]
    after: Sequence[float]
    codes_of: str = ""
    low: int = 0
    found: Sequence[float] = ()
    expected: Sequence[float] = ()

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return {key: list(value) if not isinstance(value, str | int) else value for key, value in vars(self).items()}


@dataclass(frozen=True)
class Point:
    """A result: bytes of the file, bits per weight of the whole file, `rate`, bits per weight without norms and biases;
    nats of all errors; quality. None where it is not known."""

    series: str
    bytes: float | None = None
    bits: float | None = None
    rate: float | None = None
    nats: float | None = None
    quality: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Quality:
    """A measure of the original and of the file's network. better: 1 if more is better, -1 if less."""

    metric: str
    original: float
    file: float
    better: int = 1
    points: bool = False
    inputs: int = 0


@dataclass(frozen=True)
class Facts:
    """All of a report.

    measured: whether what errors cost comes from inputs, not from an assumption. error: relative, of all weights.
    bound: (bits per weight, nats), of the weights that it covers. points: files and opponents, the first one this file.
    metric: that of the points' quality. reference: the original's quality in it.
    sensitivity_in: the unit of the rows' sensitivity and how it was found. removed: channels that are gone, by layer.
    """

    title: str
    listing: Listing
    rows: Sequence[Row]
    error: float | None = None
    measured: bool = False
    bound: Sequence[tuple[float, float]] = ()
    points: Sequence[Point] = ()
    metric: str = ""
    reference: float | None = None
    quality: Sequence[Quality] = ()
    weights: Sequence[Weight] = ()
    sensitivity_in: str = ""
    removed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, for `report.json`; numbers that are not finite are null."""
        return finite(
            {
                "title": self.title,
                **{key: value for key, value in self.listing.as_json().items() if key != "tensors"},
                "error": self.error,
                "costs": "measured" if self.measured else "assumed",
                "bound": [{"rate": rate, "nats": nats} for rate, nats in self.bound],
                "metric": self.metric,
                "original_quality": self.reference,
                "points": [point.as_json() for point in self.points],
                "quality": [vars(one) for one in self.quality],
                "sensitivity_in": self.sensitivity_in,
                "removed_channels": {name: dict(sizes) for name, sizes in self.removed.items()},
                "tensors": [row.as_json() for row in self.rows],
                "weights_shown": [weight.as_json() for weight in self.weights],
            }
        )


def finite(value: Any) -> Any:
    """A value for JSON, which has no infinities: None in their place."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
