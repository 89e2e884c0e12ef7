"""The rate-distortion bound of each layer and of the network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from waterfill.errors import BadInput
from waterfill.report.listing import SHORT
from waterfill.report.text import Column, count_text, screen, table
from waterfill.storage import FileReader

if TYPE_CHECKING:
    from waterfill.report.layers import Layer
    from waterfill.theory import Limit, NetworkLimit


@dataclass(frozen=True)
class OfFile:
    """path: of the file. bits: per weight that the bound covers. whole: of the file per weight. nats: of its errors.
    bound: bits per weight at that distortion; None for a file without errors."""

    path: str
    bits: float
    whole: float
    nats: float
    bound: float | None

    @property
    def above(self) -> float | None:
        """Bits per weight above the bound."""
        return None if self.bound is None else self.bits - self.bound

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "file": self.path,
            "bits_per_weight": self.bits,
            "file_bits_per_weight": self.whole,
            "nats": self.nats,
            "distortion_bits": self.nats / math.log(2),
            "bound": self.bound,
            "above": self.above,
        }


@dataclass(frozen=True)
class Limits:
    """The bound of a model's weights at some rates; left_out: weights that it does not cover, and why."""

    model: str
    layers: "Mapping[str, Layer]"
    left_out: Mapping[str, str]
    rates: Sequence[float]

    @cached_property
    def network(self) -> "NetworkLimit":
        """The bound of the whole network, from the spectra of its layers; one weight in memory at a time."""
        from waterfill.theory import NetworkLimit, Spectrum

        spectra = {}
        for name, layer in self.layers.items():
            spectra[name] = tuple(Spectrum.of(target, importance) for target, importance in layer.matrices())
        return NetworkLimit(spectra)

    @cached_property
    def points(self) -> "list[Limit]":
        """The bound at each rate."""
        return [self.network.at_rate(rate) for rate in self.rates]

    @cached_property
    def by_layer(self) -> "list[dict[str, Limit]]":
        """The contribution of each weight to each point."""
        return [self.network.by_layer(point.level) for point in self.points]

    def of_file(self, path: str) -> OfFile:
        """A compressed file beside the bound. Raises CorruptFile, BadInput for a file of another model."""
        from waterfill.model.lazy import CompressedTensors
        from waterfill.report.listing import read_listing

        bits = nats = 0.0
        with FileReader(path) as src:
            tensors, listing = CompressedTensors(src), read_listing(src)
            sizes = {item.name: item.bytes for item in listing.items}
            for name, layer in self.layers.items():
                own = listing.aliases.get(name, name)
                if own not in sizes or tensors[own].shape != layer.layout.shape:
                    raise BadInput(
                        f"{path} holds no {name!r} of shape {list(layer.layout.shape)}; is it of this model?"
                    )
                bits += 8 * sizes[own]
                restored = layer.layout.split(tensors[own])
                for (target, importance), restored_matrix in zip(layer.matrices(), restored, strict=True):
                    nats += importance.distortion(target - restored_matrix)
        rate = bits / self.network.entries
        return OfFile(path, rate, listing.bits, nats, self.network.at_nats(nats).rate if nats > 0 else None)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.model,
            "weights": self.network.entries,
            "limits": [_point(point) for point in self.points],
            "tensors": [
                {
                    "name": name,
                    "shape": list(layer.layout.shape),
                    "limits": [_point(at[name]) for at in self.by_layer],
                }
                for name, layer in self.layers.items()
            ],
            "left_out": dict(self.left_out),
        }

    def text(self, everything: bool) -> str:
        """The curve, the contribution of each weight, and the weights left out, as text."""
        curve = [
            [f"{p.rate:.3f}", f"{p.nats:.4g}", f"{p.nats / math.log(2):.4g}", f"{p.price:.3g}"] for p in self.points
        ]
        titles = ("bits/weight", "nats", "in bits", "nats per bit")
        size = f"{count_text(self.network.entries)} weights in {len(self.layers)} tensors"
        lines = [
            f"bound of {self.model}, {size}; norms and biases apart",
            "",
            table([Column(t) for t in titles], curve, screen()),
        ]
        lines += ["", "bits per entry that each tensor gets there", "", self._layers_text(everything)]
        lines += [f"not covered: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)

    def _layers_text(self, everything: bool) -> str:
        names = list(self.layers)
        if not everything and len(names) > SHORT:
            names = sorted(names, key=lambda name: -self.layers[name].layout.entries)[:SHORT]
        columns = [Column("tensor", text=True, least=20), Column("shape"), *(Column(f"{r:g}") for r in self.rates)]
        rows = [
            [
                name,
                "x".join(map(str, self.layers[name].layout.shape)),
                *(f"{at[name].rate:.2f}" for at in self.by_layer),
            ]
            for name in names
        ]
        rest = len(self.layers) - len(names)
        return table(columns, rows, screen()) + (f"\n... and {rest} smaller tensors; --all shows each" if rest else "")


def _point(limit: "Limit") -> dict[str, float]:
    return {
        "bits_per_weight": limit.rate,
        "nats": limit.nats,
        "distortion_bits": limit.nats / math.log(2),
        "price": limit.price,
    }


def _files_text(files: Sequence[OfFile]) -> str:
    columns = [Column("file", text=True, least=20)]
    columns += [Column(title) for title in ("nats", "bits/weight", "bound", "above", "whole file")]
    rows = []
    for file in files:
        bound = ("", "") if file.bound is None or file.above is None else (f"{file.bound:.3f}", f"{file.above:+.3f}")
        rows.append([file.path, f"{file.nats:.4g}", f"{file.bits:.3f}", *bound, f"{file.whole:.3f}"])
    return table(columns, rows, screen())
