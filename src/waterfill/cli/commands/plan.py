"""`waterfill plan`: what compress would do with the same arguments; writes nothing."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from waterfill.cli.arguments import DEFAULT_RECIPE, add_common, budget_of, existing
from waterfill.report.listing import Listing, items_of
from waterfill.report.text import bytes_text, say, say_json, seconds_text

if TYPE_CHECKING:
    from waterfill.learn.loop.estimate import Estimate

EXAMPLES = """examples:
  waterfill plan model.safetensors --bits 3 && waterfill compress model.safetensors --bits 3
  waterfill plan model.safetensors --bits 1 --network nets:resnet20 --data loaders:images --epochs 5

With --data it also says how long `waterfill learn` would train; codes are planned as without data."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `plan`."""
    add_common(parser)
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="batches to learn from")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument("--labels", action="store_true", help="batches are (inputs, labels): learn to classify")
    parser.add_argument("--epochs", type=float, default=3.0, metavar="N", help="passes through the data (default: 3)")


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
    learning = None if args.data is None else _learning(args)
    if args.json:
        more = {} if learning is None else {"learning": vars(learning)}
        say_json({"price": plan.price, "memory": plan.memory, "seconds": plan.seconds} | more | listing.as_json())
        return
    say(listing.text(args.all))
    say()
    say(f"predicted: {listing.totals()}")
    seconds = " to ".join(map(seconds_text, plan.seconds))
    say(f"{seconds}, {bytes_text(plan.memory)} of memory; {plan.price:.3g} nats per bit")
    if learning is not None:
        took, memory = seconds_text(learning.seconds), bytes_text(learning.memory)
        say(f"learning: {learning.steps:,} steps, {took} after compressing; {memory} of memory beside that of a step")


def _learning(args: argparse.Namespace) -> "Estimate":
    """What the training of `waterfill learn` would take. Raises UsageError, BadInput."""
    from waterfill import learn
    from waterfill.cli.network import counted, labelled, network_and_batches, with_weights
    from waterfill.learn.loop.estimate import estimate

    network, batches = network_and_batches(args.network, args.data, targets=args.labels)
    network = with_weights(network, existing(args.model))
    training = learn.Training(epochs=args.epochs)
    return estimate(network, counted(batches), training=training, **(labelled() if args.labels else {}))
