"""`waterfill plan`: what compress would do with the same arguments; writes nothing."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from waterfill.cli.arguments import DEFAULT_RECIPE, add_common, add_ignore, budget_of, existing, recipe_said
from waterfill.report.listing import Listing, items_of
from waterfill.report.text import bytes_text, say, say_json, seconds_text

if TYPE_CHECKING:
    from waterfill.compression.estimate import WithInputs
    from waterfill.learn.loop.estimate import Estimate

EXAMPLES = """examples:
  waterfill plan model.safetensors --bits 3 && waterfill compress model.safetensors --bits 3
  waterfill plan model.safetensors --bits 1 --network nets:resnet20 --data loaders:images --epochs 5

With --data it also says what `waterfill compress` with these data would take, and how long `waterfill learn` would
train after it; codes are planned as without data."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `plan`."""
    add_common(parser)
    add_ignore(parser)
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
        options = Options(threads=args.threads, progress=meter, runs=args.runs)
        plan = plan_file(existing(args.model), recipe, ignore=args.ignore, **budget_of(args), options=options)
    notes = {"recipe": recipe_said(args, DEFAULT_RECIPE), "original": plan.original}
    pairs = zip(items_of(plan.rows), plan.rows, strict=True)
    items = tuple(replace(item, error=None, nats=row["distortion"]) for item, row in pairs)
    listing = Listing(items, {}, notes, plan.size)
    took = None if args.data is None else _with_data(args)
    if args.json:
        more = {} if took is None else {"with_inputs": vars(took[0]), "learning": vars(took[1])}
        say_json({"price": plan.price, "memory": plan.memory, "seconds": plan.seconds} | more | listing.as_json())
        return
    say(listing.text(args.all))
    say()
    say(f"predicted: {listing.totals()}")
    seconds = " to ".join(map(seconds_text, plan.seconds))
    say(f"{seconds}, {bytes_text(plan.memory)} of memory; {plan.price:.3g} nats per bit")
    if took is not None:
        compressing, learning = took
        seconds, memory = " to ".join(map(seconds_text, compressing.seconds)), bytes_text(compressing.memory)
        disk = f", {bytes_text(compressing.disk)} of disk meanwhile" if compressing.disk else ""
        say(f"with these data: {seconds}, {memory} of memory{disk}")
        longer, memory = seconds_text(learning.seconds), bytes_text(learning.memory)
        say(f"learning: {learning.steps:,} steps, {longer} after compressing; {memory} of memory beside that of a step")


def _with_data(args: argparse.Namespace) -> "tuple[WithInputs, Estimate]":
    """What compressing with the data and training after it would take. Raises UsageError, BadInput."""
    from waterfill import learn
    from waterfill.cli.network import counted, labelled, network_and_batches, with_weights
    from waterfill.compression.estimate import with_inputs
    from waterfill.learn.loop.estimate import estimate
    from waterfill.network.running.inputs import Inputs

    network, batches = network_and_batches(args.network, args.data, targets=args.labels)
    network, known = with_weights(network, existing(args.model)), counted(batches)
    how = labelled() if args.labels else {}
    compressing = with_inputs(network, Inputs(known, how.get("forward")))
    return compressing, estimate(network, known, training=learn.Training(epochs=args.epochs), **how)
