"""`waterfill evaluate`: how good a file's network is on data, and how far it is from the original."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from waterfill.cli.arguments import existing, numbers_in, size_of
from waterfill.cli.exit_codes import UsageError
from waterfill.cli.folders import add_text, evaluate_on_text
from waterfill.cli.network import network_and_batches, with_weights
from waterfill.errors import BadInput
from waterfill.report.listing import Listing, read_listing
from waterfill.report.text import bytes_text, say, say_json
from waterfill.storage import FileReader

if TYPE_CHECKING:
    from torch import nn

    from waterfill.runtime import Latency

_CALIBRATING = 8  # batches for the ranges of 8-bit inputs

EXAMPLES = """examples:
  waterfill evaluate model.wf --network nets:resnet20 --data loaders:test_images
  waterfill evaluate model.wf --network nets:resnet20 --data images.npz --reference model.safetensors --layers
  waterfill evaluate model.wf --network nets:llama --data loaders:stories --bytes 2MB
  waterfill evaluate model.wf --network nets:resnet20 --data images.npz --reference model.safetensors --speed 1,32
  waterfill evaluate SmolLM2-135M-3bit --text held_out.txt --tokens 64x512 --reference SmolLM2-135M --json

--network names a function that builds the module, --data one that returns batches: (inputs, targets), or inputs, or
a .npz with "inputs" and "targets"; there is no accuracy without targets, but the distance from --reference. Modules
may lie in the current folder.

With --text, FILE is the folder of a transformers language model: perplexity by windows, divergence from that of
--reference and agreement with it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    parser.add_argument("file", metavar="FILE", help="a .wf file, a .safetensors file, or a folder")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="batches, or a .npz or .npy file of inputs")
    add_text(parser, "64x512")
    parser.add_argument("--packed", action="store_true", help="with --text: run from the compressed weights")
    parser.add_argument("--reference", metavar="MODEL", help="the original (.safetensors or .wf), to compare with")
    parser.add_argument(
        "--bytes", type=size_of, metavar="S", help="of the text that the targets stand for: bits a byte"
    )
    parser.add_argument("--layers", action="store_true", help="with --reference: the output error of every layer")
    parser.add_argument("--speed", type=sizes_of, metavar="N,N", help="of a .wf file: time, memory and multiplications")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises UsageError, BadInput, CorruptFile, Mismatch."""
    if args.text:
        evaluate_on_text(args)
        return
    if args.tokens or args.packed:
        raise UsageError("--tokens and --packed go with --text")
    if not args.data:
        raise UsageError("there is nothing to measure on: name some inputs with --data, or a text with --text")
    if args.layers and not args.reference:
        raise UsageError("--layers compares with an original: name it with --reference")

    from waterfill import evaluate
    from waterfill.network.running.forward import copy_of

    paths = [existing(path) for path in (args.file, args.reference) if path]
    network, inputs = network_and_batches(args.network, args.data, targets=True)
    models = [with_weights(copy_of(network), path) for path in paths]
    reference = models[1] if args.reference else None
    evaluation = evaluate(models[0], inputs, reference=reference, layers=args.layers, data_bytes=args.bytes)
    if reference is None and evaluation.nats is None:
        raise UsageError(
            f"{args.data} holds no targets, and there is nothing to compare with: let it give (inputs, targets), "
            "or name the original with --reference"
        )
    timed, remark = latencies(args, network, inputs, models) if args.speed else ([], "")
    if args.json:
        found = {"file": args.file, "reference": args.reference} | evaluation.as_json()
        if timed:
            totals = _listing(args.file).as_json()
            rates = {name: totals[name] for name in ("bytes", "original_bytes", "ratio", "bits_per_weight")}
            found |= {"compression": rates, "speed": [asdict(row) for row in timed]}
        say_json(found)
        return
    say(evaluation.text())
    if timed:
        _say_speed(_listing(args.file), timed, remark)


def _listing(path: str) -> Listing:
    with FileReader(path) as src:
        return read_listing(src)


def _say_speed(listing: Listing, timed: "list[Latency]", remark: str) -> None:
    """Print the compression rate, and a row for each network and number of inputs."""
    say()
    say(f"compression: {listing.totals()}")
    say()
    heads = (f"{'inputs':>6}", f"{'ms':>9}", f"{'quartiles':>19}", f"{'times as fast':>13}", f"{'quartiles':>12}")
    say("  ".join((f"{'network':24}", *heads, f"{'weights':>9}", f"{'peak':>9}", f"{'multiplications':>15}")))
    for row in timed:
        spread, faster = f"{row.spread[0]:.3f} - {row.spread[1]:.3f}", row.speedup_spread or (row.speedup, row.speedup)
        times = f"{row.inputs:>6}  {row.milliseconds:>9.3f}  {spread:>19}  {row.speedup:>13.2f}"
        peak = "" if row.peak is None else bytes_text(row.peak)
        share = "" if row.macs_share is None else f"{row.macs_share:.1%}"
        memory = f"{bytes_text(row.memory):>9}  {peak:>9}  {share:>15}"
        say(f"{row.name:24}  {times}  {f'{faster[0]:.2f} - {faster[1]:.2f}':>12}  {memory}".rstrip())
    if remark:
        say(remark)


def sizes_of(text: str) -> list[int]:
    """Numbers of inputs, separated by commas."""
    sizes = numbers_in(text)
    if not all(size >= 1 and size.is_integer() for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of inputs, such as 1,32")
    return [int(size) for size in sizes]


def latencies(
    args: argparse.Namespace, network: "nn.Module", inputs: "Iterable[Any]", models: "list[nn.Module]"
) -> "tuple[list[Latency], str]":
    """The original if it is named, else the restored network, also in bfloat16; the restored one, and the packed one in
    two or three forms; and a word on what could not be timed. Raises UsageError."""
    import torch

    from waterfill.network.running.batches import first_of
    from waterfill.network.running.forward import call, copy_of
    from waterfill.runtime import as_type, pack, speed

    if not args.file.endswith(".wf"):
        raise UsageError(f"--speed times what a .wf file becomes, and {args.file} is none")
    some = islice(inputs, _CALIBRATING)
    given = [batch[0] if isinstance(batch, tuple) and len(batch) == 2 else batch for batch in some]
    first, remark = ("original" if args.reference else "restored"), ""
    timed = {first: models[-1]}
    narrow = as_type(models[-1], torch.bfloat16)
    try:
        call(narrow, first_of(given[0], 1))
        timed[f"{first}, bfloat16"] = narrow
    except BadInput as error:
        remark = f"the {first} network does not run in bfloat16: {error}"
    timed["restored"] = models[0]
    for bits in (16, 8):
        timed[f"packed, {bits}-bit inputs"] = pack(args.file, copy_of(network), input_bits=bits)
    if any(isinstance(module, torch.nn.Conv2d) for module in network.modules()):
        fused, why = _of_integers(args.file, network, given)
        timed |= {} if fused is None else {"fused, 8-bit inputs": fused}
        remark = "\n".join(filter(None, (remark, why)))
    return speed(timed, given, args.speed), remark


def _of_integers(file: str, network: "nn.Module", batches: "list[Any]") -> "tuple[nn.Module | None, str]":
    """A network whose convolutions hand 8-bit integers to one another, or None; and what that loses, or why not."""
    from waterfill.network.running.forward import copy_of
    from waterfill.runtime import fuse, pack, quantize_activations, table

    try:
        made = quantize_activations(pack(file, copy_of(network)), batches)
        return fuse(made), f"fused: {table(made)[-1]['why']}"
    except BadInput as error:
        return None, f"without 8-bit convolutions: {error}"
