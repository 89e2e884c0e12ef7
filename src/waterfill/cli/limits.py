"""`waterfill limits`: the fewest bits at which a network can keep its answers, and how far above them files are."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waterfill.cli.arguments import existing
from waterfill.cli.failure import UsageError
from waterfill.cli.listing import SHORT
from waterfill.cli.text import Column, count_text, say, say_json, table
from waterfill.errors import BadInput
from waterfill.file import FileReader

if TYPE_CHECKING:
    from torch import Tensor

    from waterfill.importance import Importance
    from waterfill.layout import Layout
    from waterfill.theory import Limit, NetworkLimit

EXAMPLES = """examples:
  waterfill limits model.safetensors
  waterfill limits model.safetensors --bits 4,3,2 --compare model.wf smaller.wf
  waterfill limits model.safetensors --network nets:resnet20 --data images.npz --compare model.wf

The bound is that of Gaussian weights with the variances of rows and columns that these have: reverse water-filling, one
level for the whole network. What an error costs is what compress assumes without --data, and measures with it."""
_RATES = (6.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5)
_MOST_RATES = 8
_PROBES = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `limits`."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file, or the folder or index of a sharded one")
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="batches of inputs, or a .npz or .npy of inputs")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="with --data: what builds the network")
    parser.add_argument("--bits", type=_rates, metavar="B,B,...", help="bits per weight (default: 6 to 0.5)")
    parser.add_argument("--compare", nargs="+", default=[], metavar="FILE.wf", help="files made from MODEL")
    parser.add_argument("--all", action="store_true", help="a row for every tensor, however many there are")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the bound. Raises UsageError, BadInput, CorruptFile, Mismatch."""
    if args.network and not args.data:
        raise UsageError("--network goes with --data: name some inputs of the network")
    folded = _folded([existing(path) for path in args.compare], bool(args.data))
    layers, left_out = _with_data(args, folded) if args.data else _without(existing(args.model))
    if not layers:
        raise BadInput(f"{args.model} holds no weights of two or more dimensions; there is nothing to bound")
    found = Limits(args.model, layers, left_out, args.bits or _RATES)
    files = [found.of_file(path) for path in args.compare]
    if args.json:
        say_json(found.as_json() | {"files": [file.as_json() for file in files]})
        return
    say(found.text(args.all))
    if files:
        say(f"\n{_files_text(files)}")


@dataclass(frozen=True)
class Layer:
    """A weight: where it comes from, and what its errors cost: importance, or `factor` times what is assumed."""

    layout: "Layout"
    load: Any
    importance: "Importance | None" = None
    factor: float = 1.0

    def matrices(self) -> "list[tuple[Tensor, Importance]]":
        """Its matrices, and what errors in each cost."""
        from waterfill.importance import without_data

        size, kernel = math.prod(self.layout.matrix), self.layout.kernel
        targets = self.layout.split(self.load())
        return [(t, self.importance or without_data(t, kernel, size).scaled(self.factor)) for t in targets]


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
    layers: Mapping[str, Layer]
    left_out: Mapping[str, str]
    rates: Sequence[float]

    @cached_property
    def network(self) -> "NetworkLimit":
        """The spectra of all layers, one weight in memory at a time."""
        from waterfill.layout import check_finite
        from waterfill.theory import NetworkLimit, Spectrum

        found = {}
        for name, layer in self.layers.items():
            check_finite(name, layer.load())
            found[name] = tuple(Spectrum.of(target, importance) for target, importance in layer.matrices())
        return NetworkLimit(found)

    @cached_property
    def points(self) -> "list[Limit]":
        """The bound at each rate."""
        return [self.network.at_rate(rate) for rate in self.rates]

    @cached_property
    def by_layer(self) -> "list[dict[str, Limit]]":
        """What each weight contributes to each point."""
        return [self.network.by_layer(point.level) for point in self.points]

    def of_file(self, path: str) -> OfFile:
        """A compressed file beside the bound. Raises CorruptFile, BadInput for a file of another model."""
        from waterfill.cli.listing import read_listing
        from waterfill.cli.tensors import CompressedTensors

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
                for (target, importance), found in zip(layer.matrices(), restored, strict=True):
                    nats += importance.distortion(target - found)
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
        """The curve, what each weight gets, and what is left out."""
        curve = [
            [f"{p.rate:.3f}", f"{p.nats:.4g}", f"{p.nats / math.log(2):.4g}", f"{p.price:.3g}"] for p in self.points
        ]
        titles = ("bits/weight", "nats", "in bits", "nats per bit")
        size = f"{count_text(self.network.entries)} weights in {len(self.layers)} tensors"
        lines = [
            f"bound of {self.model}, {size}; norms and biases apart",
            "",
            table([Column(t) for t in titles], curve),
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
        return table(columns, rows) + (f"\n... and {rest} smaller tensors; --all shows each" if rest else "")


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
    return table(columns, rows)


def _without(model: str) -> tuple[dict[str, Layer], dict[str, str]]:
    """The weights of a checkpoint, and none left out."""
    from waterfill.job import Job
    from waterfill.run import FIXED_RATE_PRICE, Target

    weights = Job.of(model, "Quantize()", Target(price=FIXED_RATE_PRICE), lossless=False).weights
    return {w.name: Layer(w.layout, w.load, factor=w.factor) for w in weights if _is_matrix(w.layout)}, {}


def _is_matrix(layout: "Layout") -> bool:
    from waterfill.layout import KERNEL, MATRIX, STACK

    return layout.role in (MATRIX, KERNEL, STACK)


def _with_data(args: argparse.Namespace, folded: bool) -> tuple[dict[str, Layer], dict[str, str]]:
    """The weights that the inputs reach, with what errors in them cost, and why the others are left out."""
    from functools import partial

    from waterfill.calibration import calibrate, weights_of
    from waterfill.cli.network import network_and_batches, with_weights
    from waterfill.folding import fold_batch_norm
    from waterfill.gathering import AUTO

    network, given = network_and_batches(args.network, args.data)
    network, batches = with_weights(network, existing(args.model)), list(given)
    if folded and batches:
        network = fold_batch_norm(network, batches[0])
    calibration = calibrate(network, batches, importance=AUTO, probes=_PROBES)  # as files are made
    weights, layouts = weights_of(network)
    layers = {
        name: Layer(layout, partial(weights.__getitem__, name), calibration[name])
        for name, layout in layouts.items()
        if _is_matrix(layout) and name in calibration
    }
    return layers, calibration.unreached


def _folded(paths: Sequence[str], data: bool) -> bool:
    """Whether these files hold weights with norms folded into them. Raises UsageError, CorruptFile."""
    found = []
    for path in paths:
        with FileReader(path) as src:
            notes = src.manifest.get("notes", {})
            found.append(isinstance(notes, Mapping) and bool(notes.get("folded")))
    if any(found) and not data:
        odd = Path(paths[found.index(True)]).name
        raise UsageError(f"{odd} holds norms folded into weights: to do the same here, give --network and --data")
    if any(found) and not all(found):
        raise UsageError("some of these files hold norms folded into weights and some do not: compare them apart")
    return any(found)


def _rates(text: str) -> tuple[float, ...]:
    """Rates in bits per weight, separated by commas, the largest first."""
    rates = tuple(sorted({float(rate) for rate in text.split(",")}, reverse=True))
    if not all(0 < rate < math.inf for rate in rates) or len(rates) > _MOST_RATES:
        raise argparse.ArgumentTypeError(f"{text!r}: give one to {_MOST_RATES} positive rates, such as 4,3,2")
    return rates
