"""`waterfill evaluate`: how good a file's network is on data, and how far it is from the original."""

import argparse
from typing import TYPE_CHECKING, Any

from waterfill.cli.arguments import existing
from waterfill.cli.failure import UsageError
from waterfill.cli.text import say, say_json
from waterfill.errors import Mismatch

if TYPE_CHECKING:
    from torch import Tensor, nn

EXAMPLES = """examples:
  waterfill evaluate model.wf --network nets:resnet20 --data loaders:test_images
  waterfill evaluate model.wf --network nets:resnet20 --data images.npz --reference model.safetensors --layers

--network names a function that builds the module, --data one that returns batches: (inputs, targets), or inputs;
there is no accuracy without targets, but the distance from --reference. Modules may lie in the current folder."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    parser.add_argument("file", metavar="FILE", help="a .wf file, or a .safetensors file or folder")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument(
        "--data", required=True, metavar="MODULE:FUNCTION|FILE", help="batches, or a .npz or .npy file of inputs"
    )
    parser.add_argument("--reference", metavar="MODEL", help="the original (.safetensors or .wf), to compare with")
    parser.add_argument("--layers", action="store_true", help="with --reference: the output error of every layer")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises UsageError, BadInput, CorruptFile, Mismatch."""
    if args.layers and not args.reference:
        raise UsageError("--layers compares with an original: name it with --reference")
    import copy

    from waterfill import evaluate
    from waterfill.inputs import load_inputs, load_model

    paths = [existing(path) for path in (args.file, args.reference) if path]
    network = load_model(args.network) if args.network else None
    inputs = load_inputs(args.data, network)
    network = network if network is not None else inputs.model
    if network is None:
        raise UsageError("there is no network: name the function that builds it with --network module:function")
    models = [_with_weights(copy.deepcopy(network), path) for path in paths]
    reference = models[1] if args.reference else None
    found = evaluate(models[0], inputs.batches, reference=reference, layers=args.layers)
    if args.json:
        say_json({"file": args.file, "reference": args.reference} | found.as_json())
    else:
        say(found.text())


def _with_weights(module: "nn.Module", path: str) -> "nn.Module":
    """The module with the weights of a file. Raises BadInput, CorruptFile, Mismatch."""
    import waterfill
    from waterfill.checkpoint import open_checkpoint

    if path.endswith(".wf"):
        return waterfill.load(path).install(module)
    checkpoint = open_checkpoint(path)
    state: dict[str, Tensor] = {name: stored.load() for name, stored in checkpoint.tensors.items()}
    state |= {alias: state[name] for alias, name in checkpoint.aliases.items()}
    try:
        module.load_state_dict(_as_wanted(module, state), strict=True)
    except RuntimeError as error:
        raise Mismatch(f"{path} does not fit the network of --network: {error}") from error
    return module


def _as_wanted(module: "nn.Module", state: "dict[str, Tensor]") -> dict[str, Any]:
    """The state with tied names that the file leaves out, as .safetensors files do."""
    own = module.state_dict(keep_vars=True)
    known = {id(value): name for name, value in own.items() if name in state}
    missing = {name: known[id(value)] for name, value in own.items() if name not in state and id(value) in known}
    return state | {name: state[other] for name, other in missing.items()}
