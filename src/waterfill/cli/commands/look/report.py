"""`waterfill report`: one offline page about a file, and its numbers as JSON beside it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from waterfill.cli.arguments import existing, writable
from waterfill.cli.exit_codes import UsageError
from waterfill.report.text import bytes_text, say, say_json

if TYPE_CHECKING:
    from waterfill.report import Report

EXAMPLES = """examples:
  waterfill report model.wf
  waterfill report model.wf --against model.safetensors -o report.html
  waterfill report model.wf --against model.safetensors --network nets:resnet20 --data images.npz \\
      --held-out loaders:labelled_images --compared table.json --sensitivity losses.json

The page needs no network and no other file. With --against it has errors, the bound, rounding and the weights before
and after; with --data what errors cost is measured, and quality too. --compared and --sensitivity are files that
`waterfill compare -o` and `waterfill sensitivity -o` wrote."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `report`."""
    parser.add_argument("file", metavar="FILE.wf")
    parser.add_argument("--against", metavar="MODEL", help="the original: a .safetensors file or folder")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="batches of inputs, or a .npz or .npy of inputs")
    parser.add_argument(
        "--held-out", metavar="MODULE:FUNCTION|FILE", help="other inputs, with targets if there are any"
    )
    parser.add_argument("--compared", metavar="FILE.json", help="other files of the network, by `waterfill compare`")
    parser.add_argument("--sensitivity", metavar="FILE.json", help="as `waterfill sensitivity` measured it")
    parser.add_argument("-o", "--output", metavar="OUT.html", help="the page (default: beside FILE)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--json", action="store_true", help="print its numbers as JSON, and write nothing unless -o")


def run(args: argparse.Namespace) -> None:
    """Write the page. Raises UsageError, CorruptFile, VerifyError, BadInput, OutputExists."""
    for name in ("network", "held_out"):
        if getattr(args, name) and not args.data:
            raise UsageError(f"--{name.replace('_', '-')} goes with --data: name some inputs of the network")
    if args.data and not args.against:
        raise UsageError("--data is for an original and its network: name its weights with --against")
    output = Path(args.output or Path(existing(args.file)).with_suffix(".html"))
    wanted = bool(args.output) or not args.json
    for path in (output, output.with_suffix(".json")) if wanted else ():
        writable(str(path), args.force)
    report = _report(args)
    written = report.save(output, force=args.force) if wanted else ()
    if args.json:
        say_json({"file": args.file, "written": [str(path) for path in written]} | report.as_json())
        return
    sizes = " and ".join(f"{path} ({bytes_text(path.stat().st_size)})" for path in written)
    say(f"{args.file}: written {sizes}")


def _report(args: argparse.Namespace) -> "Report":
    from waterfill.report import Comparison, Sensitivity, describe

    network = batches = held_out = None
    if args.data:
        from waterfill.cli.network import network_and_batches, with_weights

        network, batches = network_and_batches(args.network, args.data)
        network = with_weights(network, existing(args.against))
    if args.held_out:
        held_out = network_and_batches(args.network, args.held_out, targets=True)[1]
    return describe(
        args.file,
        against=existing(args.against) if args.against else None,
        batches=batches,
        network=network,
        held_out=held_out,
        comparison=Comparison.load(existing(args.compared)) if args.compared else None,
        sensitivity=Sensitivity.load(existing(args.sensitivity)) if args.sensitivity else None,
    )
