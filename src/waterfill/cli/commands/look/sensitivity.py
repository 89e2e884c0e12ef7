"""`waterfill sensitivity`: what a network loses if one weight alone has few bits."""

import argparse
from typing import Any

from waterfill.cli.arguments import add_metric, existing, writable
from waterfill.cli.exit_codes import UsageError
from waterfill.report.text import say, say_json

EXAMPLES = """examples:
  waterfill sensitivity model.safetensors
  waterfill sensitivity model.safetensors --network nets:resnet20 --data images.npz -o losses.json
  waterfill sensitivity model.safetensors --network nets:resnet20 --data images.npz --predicted --bits 2,4

Without --data the loss is what errors are assumed to cost. With it the network is run with each weight rounded in turn,
and the divergence of its outputs from the original's is measured, or another --metric; --predicted calibrates once
instead. Interrupted, the same command with -o goes on where it was."""
_BITS = (2, 3, 4, 8)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sensitivity`."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file, or the folder or index of a sharded one")
    parser.add_argument("--bits", type=_bits, default=_BITS, metavar="B,B,...", help="2 to 8 (default: 2,3,4,8)")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="batches, or a .npz or .npy of inputs")
    add_metric(parser, "divergence", "what is lost")
    parser.add_argument("--predicted", action="store_true", help="with --data: from the importance, in one pass")
    parser.add_argument("-o", "--output", metavar="OUT.json", help="where the rows are kept, to go on from")
    parser.add_argument("--all", action="store_true", help="a row for every tensor, however many there are")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the table. Raises UsageError, BadInput, PlanMismatch."""
    if (args.network or args.predicted) and not args.data:
        name = "network" if args.network else "predicted"
        raise UsageError(f"--{name} goes with --data: name some inputs of the network")
    model: Any = existing(args.model)
    if args.output:
        writable(args.output, True)
    from waterfill.cli.progress import Meter
    from waterfill.report import sensitivity

    batches = None
    if args.data:
        from waterfill.cli.network import network_and_batches, with_weights

        targets = args.metric not in ("divergence", "agreement") and not args.predicted
        network, batches = network_and_batches(args.network, args.data, targets=targets)
        model = with_weights(network, args.model)
    with Meter(args.quiet) as meter:
        found = sensitivity(
            *(model, batches),
            bits=args.bits,
            metric=args.metric,
            predicted=args.predicted,
            work=args.output,
            progress=meter,
        )
    if args.json:
        say_json({"model": args.model} | found.as_json())
        return
    say(found.text(args.all))


def _bits(text: str) -> tuple[int, ...]:
    """Numbers of bits, separated by commas."""
    bits = tuple(dict.fromkeys(int(piece) for piece in text.split(",")))
    if not all(2 <= b <= 8 for b in bits):
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers from 2 to 8, such as 2,3,4,8")
    return bits
