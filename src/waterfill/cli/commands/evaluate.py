"""`waterfill evaluate`: how good a file's network is on data, and how far it is from the original."""

import argparse

from waterfill.cli.arguments import existing, size_of
from waterfill.cli.exit_codes import UsageError
from waterfill.cli.network import network_and_batches, with_weights
from waterfill.report.text import say, say_json

EXAMPLES = """examples:
  waterfill evaluate model.wf --network nets:resnet20 --data loaders:test_images
  waterfill evaluate model.wf --network nets:resnet20 --data images.npz --reference model.safetensors --layers
  waterfill evaluate model.wf --network nets:llama --data loaders:stories --bytes 2MB

--network names a function that builds the module, --data one that returns batches: (inputs, targets), or inputs, or
a .npz with "inputs" and "targets"; there is no accuracy without targets, but the distance from --reference. Modules
may lie in the current folder."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    parser.add_argument("file", metavar="FILE", help="a .wf file, or a .safetensors file or folder")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument(
        "--data", required=True, metavar="MODULE:FUNCTION|FILE", help="batches, or a .npz or .npy file of inputs"
    )
    parser.add_argument("--reference", metavar="MODEL", help="the original (.safetensors or .wf), to compare with")
    parser.add_argument(
        "--bytes", type=size_of, metavar="S", help="of the text that the targets stand for: bits a byte"
    )
    parser.add_argument("--layers", action="store_true", help="with --reference: the output error of every layer")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises UsageError, BadInput, CorruptFile, Mismatch."""
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
    if args.json:
        say_json({"file": args.file, "reference": args.reference} | evaluation.as_json())
    else:
        say(evaluation.text())
