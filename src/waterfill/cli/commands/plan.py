"""`waterfill plan`: what compress would do with the same arguments; writes nothing."""

import argparse
from dataclasses import replace

from waterfill.cli.arguments import DEFAULT_RECIPE, add_common, budget_of, existing
from waterfill.report.listing import Listing, items_of
from waterfill.report.text import bytes_text, say, say_json, seconds_text

EXAMPLES = """example:
  waterfill plan model.safetensors --bits 3 && waterfill compress model.safetensors --bits 3"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `plan`."""
    add_common(parser)


def run(args: argparse.Namespace) -> None:
    """Print the predictions. Raises what `waterfill.plan_file` raises."""
    from waterfill import Options, plan_file
    from waterfill.cli.progress import Meter

    recipe = args.recipe or DEFAULT_RECIPE
    with Meter(args.quiet) as meter:
        options = Options(threads=args.threads, progress=meter)
        plan = plan_file(existing(args.model), recipe, **budget_of(args), options=options)
    notes = {"recipe": "lossless" if args.lossless else recipe, "original": plan.original}
    pairs = zip(items_of(plan.rows), plan.rows, strict=True)
    items = tuple(replace(item, error=None, nats=row["distortion"]) for item, row in pairs)
    listing = Listing(items, {}, notes, plan.size)
    if args.json:
        say_json({"price": plan.price, "memory": plan.memory, "seconds": plan.seconds} | listing.as_json())
        return
    say(listing.text(args.all))
    say()
    say(f"predicted: {listing.totals()}")
    seconds = " to ".join(map(seconds_text, plan.seconds))
    say(f"{seconds}, {bytes_text(plan.memory)} of memory; {plan.price:.3g} nats per bit")
