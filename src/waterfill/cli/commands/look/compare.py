"""`waterfill compare`: several recipes at several sizes, a row for each file that they make."""

import argparse
from typing import Any

from waterfill.cli.arguments import add_metric, existing, numbers_in, writable
from waterfill.cli.exit_codes import UsageError
from waterfill.report.text import say, say_json

EXAMPLES = """examples:
  waterfill compare model.safetensors --recipes "Quantize()" "Quantize() + Prune()" --bits 4,3,2
  waterfill compare model.safetensors --network nets:resnet20 --data images.npz --held-out loaders:labelled_images \\
      --recipes automatic "Quantize(bits=3, group=128)" --bits 3,2,1.5 --rounding -o table.json --plot table.svg
  waterfill report small.wf --against model.safetensors --compared table.json

Each row is written to the -o file as soon as it is measured: interrupted, the same command goes on where it was, and
with more recipes or rates it adds their rows. "automatic" is the recipe that compress takes by itself."""
_RATES = (4.0, 3.0, 2.0)
_MOST_RATES = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `compare`."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file, or the folder or index of a sharded one")
    parser.add_argument("--recipes", nargs="+", default=["automatic"], metavar="TEXT", help="what to look for, each")
    parser.add_argument("--bits", type=_rates, default=_RATES, metavar="B,B,...", help="per weight (default: 4,3,2)")
    parser.add_argument("--rounding", action="store_true", help="plain rounding in groups of 128 too, at 2 to 8 bits")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="batches of inputs, or a .npz or .npy of inputs")
    parser.add_argument("--held-out", metavar="MODULE:FUNCTION|FILE", help="inputs to measure quality on")
    add_metric(parser, "accuracy", "the quality")
    parser.add_argument("-o", "--output", metavar="OUT.json", help="where the rows are kept, to go on from")
    parser.add_argument("--plot", metavar="OUT.svg", help="a plot of all rows")
    parser.add_argument("--force", action="store_true", help="overwrite the plot")
    parser.add_argument("--threads", type=int, metavar="N", help="tensors at a time")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the table. Raises UsageError, BadInput, BadRecipe, PlanMismatch, OutputExists."""
    if args.network and not (args.data or args.held_out):
        raise UsageError("--network goes with --data or --held-out: name some inputs of the network")
    existing(args.model)
    if args.output:
        writable(args.output, True)
    if args.plot:
        writable(args.plot, args.force)
    from waterfill import Options
    from waterfill.cli.progress import Meter
    from waterfill.report import compare
    from waterfill.storage.atomic import AtomicFile

    given = _given(args)
    with Meter(args.quiet) as meter:
        options = Options(progress=meter, threads=args.threads)
        table = compare(
            **given,
            recipes=args.recipes,
            bits=args.bits,
            metric=args.metric,
            rounding=args.rounding,
            work=args.output,
            options=options,
        )
    if args.plot:
        with AtomicFile(args.plot, force=args.force) as out:
            out.file.write(table.svg().encode())
            out.finish()
    if args.json:
        say_json({"model": args.model} | table.as_json())
        return
    say(table.text())


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The model and its inputs."""
    from waterfill.cli.network import network_and_batches, with_weights

    network = batches = held_out = None
    if args.data:
        network, batches = network_and_batches(args.network, args.data)
    if args.held_out:
        built, held_out = network_and_batches(args.network, args.held_out, targets=True)
        network = built if network is None else network
    model = args.model if network is None else with_weights(network, args.model)
    return {"model": model, "batches": batches, "held_out": held_out}


def _rates(text: str) -> tuple[float, ...]:
    """Rates in bits per weight, separated by commas, in the order given."""
    rates = tuple(dict.fromkeys(numbers_in(text)))
    if not all(0 < rate <= 32 for rate in rates) or len(rates) > _MOST_RATES:
        raise argparse.ArgumentTypeError(f"{text!r}: give one to {_MOST_RATES} positive rates, such as 4,3,2")
    return rates
