"""`waterfill limits`: the fewest bits at which a network can keep its answers, and how far above them files are."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from waterfill.cli.arguments import existing, numbers_in
from waterfill.cli.exit_codes import UsageError
from waterfill.errors import BadInput
from waterfill.report.limits import Limits, _files_text
from waterfill.report.text import say, say_json
from waterfill.storage import FileReader

if TYPE_CHECKING:
    from waterfill.report.layers import Layers

EXAMPLES = """examples:
  waterfill limits model.safetensors
  waterfill limits model.safetensors --bits 4,3,2 --compare model.wf smaller.wf
  waterfill limits model.safetensors --network nets:resnet20 --data images.npz --compare model.wf

The bound is that of Gaussian weights with the variances of rows and columns that these have: reverse water-filling, one
level for the whole network. What an error costs is what compress assumes without --data, and measures with it."""
_RATES = (6.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5)
_MOST_RATES = 8


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
    layers = _layers(args, folded)
    if not layers.weights:
        raise BadInput(f"{args.model} holds no weights of two or more dimensions; there is nothing to bound")
    limits = Limits(args.model, layers.weights, layers.left_out, args.bits or _RATES)
    files = [limits.of_file(path) for path in args.compare]
    if args.json:
        say_json(limits.as_json() | {"files": [file.as_json() for file in files]})
        return
    say(limits.text(args.all))
    if files:
        say(f"\n{_files_text(files)}")


def _layers(args: argparse.Namespace, folded: bool) -> "Layers":
    """The weights, and what errors in them cost. Raises BadInput for NaN."""
    from waterfill.cli.network import network_and_batches, with_weights
    from waterfill.report.layers import assumed_layers, measured_layers

    if not args.data:
        return assumed_layers(existing(args.model))
    network, given = network_and_batches(args.network, args.data)
    return measured_layers(with_weights(network, existing(args.model)), list(given), fold=folded)


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
    rates = tuple(sorted(set(numbers_in(text)), reverse=True))
    if not all(0 < rate < math.inf for rate in rates) or len(rates) > _MOST_RATES:
        raise argparse.ArgumentTypeError(f"{text!r}: give one to {_MOST_RATES} positive rates, such as 4,3,2")
    return rates
