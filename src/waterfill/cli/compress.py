"""`waterfill compress`: a .wf file that meets a budget."""

import argparse
import os

from waterfill.cli.arguments import add_common, budget_of, default_output, existing
from waterfill.cli.listing import Listing, items_of
from waterfill.cli.text import say, say_json, seconds_text
from waterfill.errors import OutputExists

EXAMPLES = """examples:
  waterfill compress model.safetensors --bits 3
  waterfill compress model.safetensors --size 3MB -o small.wf --recipe "Quantize() + Prune()"
  waterfill compress checkpoint-folder --lossless

Interrupted or killed, the same command goes on where it was."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `compress`."""
    add_common(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help="the file to write (default: beside MODEL, named .wf)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")


def run(args: argparse.Namespace) -> None:
    """Write OUT and say what every tensor became. Raises what `waterfill.compress_file` raises."""
    output = args.output or default_output(existing(args.model))
    if os.path.exists(output) and not args.force:  # said before torch is imported and the checkpoint read
        raise OutputExists(f"{output} exists; choose another output with -o, or overwrite it with --force")
    from waterfill import Options, compress_file
    from waterfill.cli.progress import Meter

    with Meter(args.quiet) as meter:
        options = Options(force=args.force, threads=args.threads, progress=meter)
        summary = compress_file(existing(args.model), output, args.recipe, **budget_of(args), options=options)
    notes = {"recipe": "lossless" if args.lossless else args.recipe, "original": summary.original}
    listing = Listing(items_of(summary.rows), summary.aliases, notes, summary.size)
    if args.json:
        say_json({"file": output, "seconds": summary.seconds} | listing.as_json())
        return
    say(listing.text(args.all))
    say()
    say(f"{output}: {listing.totals()}")
    say(f"took {seconds_text(summary.seconds)}")
