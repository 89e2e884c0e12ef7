"""`waterfill compress`: a .wf file that meets a budget."""

import argparse
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waterfill.cli.arguments import (
    DEFAULT_RECIPE,
    add_common,
    add_ignore,
    add_metric,
    budget_of,
    default_output,
    existing,
    recipe_said,
    share_of,
    size_of,
    writable,
)
from waterfill.cli.engines import add_engine, check_engine, engine_of
from waterfill.cli.exit_codes import UsageError
from waterfill.cli.folders import add_text, compress_to_folder, is_folder_wanted
from waterfill.cli.network import network_and_batches, with_weights
from waterfill.errors import BadInput
from waterfill.report.listing import Listing, items_of
from waterfill.report.text import say, say_json, seconds_text
from waterfill.storage.atomic import claimed

if TYPE_CHECKING:
    from torch import nn

    from waterfill.compression.post_training import Calibrated
    from waterfill.compression.to_quality import Search
    from waterfill.evaluation.quality import Drop
    from waterfill.model.compressed import CompressedModel

EXAMPLES = """examples:
  waterfill compress model.safetensors --bits 3
  waterfill compress model.safetensors --size 3MB -o small.wf --recipe "Quantize() + Prune()"
  waterfill compress checkpoint-folder --lossless
  waterfill compress checkpoint-folder --bits 3 --ignore lm_head --ignore "*norm*" \
      --recipe "re:.*mlp.*: Quantize(states=64); *: Quantize()"
  waterfill compress SmolLM2-135M -o SmolLM2-135M-3bit --bits 3
  waterfill compress SmolLM2-135M -o SmolLM2-135M-3bit --bits 3 --text stories.txt --tokens 128x512
  waterfill compress model.safetensors --bits 2 --network nets:resnet20 --data loaders:some_images
  waterfill compress checkpoint-folder --bits 3 --engine dask --scheduler tcp://10.0.0.1:8786
  waterfill compress model.safetensors --max-drop 0.5% --network nets:resnet20 --data images.npz \\
      --held-out loaders:labelled_images

With --data, a few hundred inputs without labels, errors are put where they cost least: always worth it. Interrupted or
killed, the same command without inputs goes on where it was.

From the folder of a transformers model to an OUT that is no .wf, OUT is a folder too, with config and tokenizer, which
transformers reads after `import waterfill.hf`. With --text a large model goes through block by block (--blocks), with
one block in memory, and an interrupted command goes on where it was; a small one is in memory as a whole."""
_WITH_DATA = ("network", "max_drop", "held_out", "memory", "cache", "sure", "blocks")


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `compress`."""
    budget = add_common(parser)
    add_ignore(parser)
    budget.add_argument("--max-drop", metavar="D", help="how far quality may fall, such as 0.5%% (with --held-out)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="the .wf file to write (default: beside MODEL), or a folder for a folder"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_engine(parser)
    data = parser.add_argument_group("with data")
    data.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="batches of inputs, or a .npz or .npy of inputs")
    add_text(data, "128x512")
    data.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    data.add_argument("--memory", type=size_of, metavar="S", help="for what is measured at a time (default: 1 GiB)")
    data.add_argument(
        "--blocks",
        metavar="auto|NAME|none",
        help="the list of modules to go through one by one, such as model.layers (default: auto, for large networks)",
    )
    data.add_argument("--cache", metavar="FOLDER", help="where measurements are kept, to go on from if interrupted")
    data.add_argument("--held-out", metavar="MODULE:FUNCTION|FILE", help="batches (inputs, targets) to measure on")
    add_metric(data, "accuracy", "what --max-drop counts")
    data.add_argument(
        "--sure", type=share_of, metavar="P", help="how sure the drop has to be, such as 95%% (default: as measured)"
    )


def run(args: argparse.Namespace) -> None:
    """Write OUT and print a row for every tensor. Raises the errors of `compress_file` and `compress`."""
    check_engine(args)
    if is_folder_wanted(args):
        began = time.monotonic()
        listing = compress_to_folder(args)
        _say(args, args.output, listing, {}, time.monotonic() - began)
        return
    output = args.output or default_output(existing(args.model))
    writable(output, args.force, args.model)  # before torch is imported and the checkpoint read
    for name in _WITH_DATA:
        if getattr(args, name) and not args.data:
            raise UsageError(f"--{name.replace('_', '-')} goes with --data: name some inputs of the network")
    if args.data and args.lossless:
        raise UsageError("--lossless keeps every bit and needs no --data")
    if bool(args.max_drop) != bool(args.held_out):
        raise UsageError("--max-drop is measured on --held-out inputs: give both")
    if args.sure and not args.max_drop:
        raise UsageError("--sure goes with --max-drop")
    if args.blocks and args.max_drop:
        raise UsageError("--blocks is for one budget; --max-drop measures the network as a whole")
    began = time.monotonic()
    listing, report = _with_data(args, output) if args.data else _without(args, output)
    _say(args, output, listing, report, time.monotonic() - began)


def _say(args: argparse.Namespace, output: str, listing: Listing, report: dict[str, Any], seconds: float) -> None:
    if args.json:
        say_json({"file": output, "seconds": seconds} | listing.as_json() | report.get("json", {}))
        return
    say(listing.text(args.all))
    for line in report.get("lines", []):
        say()
        say(line)
    say()
    say(f"{output}: {listing.totals()}")
    if unspent := _unspent(args, listing):
        say(unspent)
    say(f"took {seconds_text(seconds)}")


def _unspent(args: argparse.Namespace, listing: Listing) -> str:
    """A remark if the file is far smaller than its budget, or what counts in memory; else empty."""
    from waterfill.compression.allocation.budget import unused

    if args.runs:
        return str(listing.notes.get("budget", ""))
    allowed = args.size or (args.bits or 0) * listing.weights / 8 or (listing.original or 0) / (args.ratio or math.inf)
    remark = unused(int(allowed), listing.size)
    return f"{remark}; --lossless keeps every bit" if remark else ""


def _without(args: argparse.Namespace, output: str) -> tuple[Listing, dict[str, Any]]:
    """Compress the checkpoint as it lies on disk, one tensor in memory at a time."""
    from waterfill import Options, compress_file
    from waterfill.cli.progress import Meter
    from waterfill.compression.allocation.budget import counted

    model, recipe = existing(args.model), args.recipe or DEFAULT_RECIPE
    chosen = {"ignore": args.ignore} | budget_of(args)
    with engine_of(args) as engine, Meter(args.quiet) as meter:
        options = Options(force=args.force, threads=args.threads, progress=meter, runs=args.runs)
        summary = compress_file(model, output, recipe, **chosen, options=options, engine=engine)
    notes = {"recipe": recipe_said(args, DEFAULT_RECIPE), "original": summary.original}
    notes |= {"budget": counted(summary.memory, args.runs)} if summary.memory else {}
    return Listing(items_of(summary.rows), summary.aliases, notes, summary.size), {}


def _beside(args: argparse.Namespace, network: "nn.Module", batches: "Iterable[Any]") -> int:
    """Bytes of the file of --format that are no weights."""
    if args.runs in (None, "packed"):
        return 0
    from waterfill.export import beside

    return beside(network, batches, args.runs)


def _goal(args: argparse.Namespace) -> "tuple[Drop, Search] | None":
    """The goal of --max-drop and --sure, parsed before anything is loaded. Raises UsageError."""
    from waterfill.compression.to_quality import Search
    from waterfill.evaluation.quality import parse_drop

    if not args.max_drop:
        return None
    try:
        drop = parse_drop(args.max_drop, args.metric)
    except BadInput as error:
        raise UsageError(f"--max-drop: {error}") from error
    return drop, Search() if args.sure is None else Search(sure=args.sure)


def _to_quality(
    args: argparse.Namespace, network: "nn.Module", measured: "Calibrated", goal: "tuple[Drop, Search]"
) -> "tuple[CompressedModel, dict[str, Any]]":
    """The smallest file that loses no more than is allowed, and what was tried for it."""
    from waterfill.compression.to_quality import compress_to_quality
    from waterfill.evaluation.quality import measure_of

    held_out = network_and_batches(args.network, args.held_out, targets=True)[1]
    measure = measure_of(args.metric, held_out, network)
    made, trace = compress_to_quality(network, measure, goal[0], compressor=measured, search=goal[1])
    return made, {"lines": [trace.text()], "json": {"trace": trace.as_json()}}


def _with_data(args: argparse.Namespace, output: str) -> tuple[Listing, dict[str, Any]]:
    """Compress the network with the checkpoint's weights, calibrated on its inputs."""
    from waterfill.calibration.calibrate import MEMORY
    from waterfill.cli.progress import Meter
    from waterfill.compression.allocation.budget import Budget
    from waterfill.compression.options import AUTO_BLOCKS, Options
    from waterfill.compression.post_training import automatic, calibrated, compress_with_inputs
    from waterfill.compression.task import resolve
    from waterfill.network.running.inputs import Inputs

    goal = _goal(args)
    network, batches = network_and_batches(args.network, args.data)
    network = with_weights(network, existing(args.model))
    report: dict[str, Any] = {}
    with claimed(output), Meter(args.quiet) as meter:
        cache, memory = Path(args.cache) if args.cache else None, args.memory or MEMORY
        how: dict[str, Any] = {"runs": args.runs, "blocks": args.blocks or AUTO_BLOCKS}
        how["beside"] = _beside(args, network, batches)
        options = Options(progress=meter, threads=args.threads, cache=cache, memory=memory, **how)
        given = {name: value for name, value in budget_of(args).items() if name != "lossless"}
        recipe = automatic(args.recipe, args.ignore, options)
        budget = resolve(Budget(**given), recipe)
        if goal is None:
            made = compress_with_inputs(network, Inputs(list(batches)), recipe, budget, options)
        else:
            with calibrated(network, Inputs(list(batches)), recipe, options) as measured:
                made, report = _to_quality(args, network, measured, goal)
    made.save(output, force=args.force)
    unreached = made.notes.get("unreached", [])
    if unreached:
        line = f"never reached by the data, so that what errors in them cost is assumed: {', '.join(unreached)}"
        report["lines"] = [*report.get("lines", []), line]
    return Listing(items_of(made.table()), made.aliases, made.notes, made.size), report
