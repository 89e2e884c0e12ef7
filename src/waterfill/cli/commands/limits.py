"""`waterfill limits`: the fewest bits at which a network can keep its answers, and how far above them files are."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from waterfill.cli.arguments import existing
from waterfill.cli.exit_codes import UsageError
from waterfill.errors import BadInput
from waterfill.report.limits import Layer, Limits, _files_text
from waterfill.report.text import say, say_json
from waterfill.storage import FileReader

if TYPE_CHECKING:
    from waterfill.network.layout import Layout

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
    limits = Limits(args.model, layers, left_out, args.bits or _RATES)
    files = [limits.of_file(path) for path in args.compare]
    if args.json:
        say_json(limits.as_json() | {"files": [file.as_json() for file in files]})
        return
    say(limits.text(args.all))
    if files:
        say(f"\n{_files_text(files)}")


def _without(model: str) -> tuple[dict[str, Layer], dict[str, str]]:
    """The weights of a checkpoint, and why some of them are kept bit for bit. Raises BadInput for NaN."""
    from waterfill.compression.allocation.budget import Budget
    from waterfill.compression.job import Job
    from waterfill.recipe import DEFAULT_RECIPE

    weights = Job.of(model, DEFAULT_RECIPE, Budget(price=1.0)).task.weights
    layers = {w.name: Layer(w.layout, w.tensor, None, w.factor, w.lines) for w in weights if _is_matrix(w.layout)}
    left_out = {w.name: w.kept for w in weights if w.kept and len(w.layout.shape) > 1}
    return {name: layer for name, layer in layers.items() if name not in left_out}, left_out


def _is_matrix(layout: "Layout") -> bool:
    from waterfill.network.layout import KERNEL, MATRIX, STACK

    return layout.role in (MATRIX, KERNEL, STACK)


def _with_data(args: argparse.Namespace, folded: bool) -> tuple[dict[str, Layer], dict[str, str]]:
    """The weights that the inputs reach, with what errors in them cost, and why the others are left out."""
    from functools import partial

    from waterfill.calibration.calibrate import calibrate, weights_of
    from waterfill.calibration.probes import AUTO
    from waterfill.cli.network import network_and_batches, with_weights
    from waterfill.network.batch_norm import fold_batch_norm

    network, given = network_and_batches(args.network, args.data)
    network, batches = with_weights(network, existing(args.model)), list(given)
    if folded and batches:
        network = fold_batch_norm(network, *batches)
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
    folded = []
    for path in paths:
        with FileReader(path) as src:
            notes = src.manifest.get("notes", {})
            folded.append(isinstance(notes, Mapping) and bool(notes.get("folded")))
    if any(folded) and not data:
        odd = Path(paths[folded.index(True)]).name
        raise UsageError(f"{odd} holds norms folded into weights: to do the same here, give --network and --data")
    if any(folded) and not all(folded):
        raise UsageError("some of these files hold norms folded into weights and some do not: compare them apart")
    return any(folded)


def _rates(text: str) -> tuple[float, ...]:
    """Rates in bits per weight, separated by commas, the largest first."""
    rates = tuple(sorted({float(rate) for rate in text.split(",")}, reverse=True))
    if not all(0 < rate < math.inf for rate in rates) or len(rates) > _MOST_RATES:
        raise argparse.ArgumentTypeError(f"{text!r}: give one to {_MOST_RATES} positive rates, such as 4,3,2")
    return rates
