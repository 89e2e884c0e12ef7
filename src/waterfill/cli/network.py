"""The network that a command works on: built by a function of the user's, its weights from a file."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from waterfill.cli.exit_codes import UsageError
from waterfill.errors import BadInput, Mismatch

if TYPE_CHECKING:
    from torch import Tensor, nn

_LONGEST = 600  # characters of a message


def network_and_batches(network: str | None, data: str, *, targets: bool = False) -> "tuple[nn.Module, Iterable[Any]]":
    """The network of `--network` and the batches of `--data`, whose function may give both.

    targets: whether those of an array file are taken too. Raises UsageError, BadInput.
    """
    from waterfill.cli.inputs import load_inputs, load_model

    inputs = load_inputs(data, load_model(network) if network else None, targets)
    if inputs.model is None:
        raise UsageError("there is no network: name the function that builds it with --network module:function")
    return inputs.model, inputs.batches


def counted(batches: "Iterable[Any]") -> "Iterable[Any]":
    """Batches whose number is known."""
    return batches if hasattr(batches, "__len__") else list(batches)


def labelled() -> "dict[str, Any]":
    """How batches of (inputs, labels) are run and scored: as a classification."""
    import torch.nn.functional as F

    def forward(model: "nn.Module", batch: Any) -> Any:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise BadInput(f"--labels: batches are (inputs, labels), and this is a {type(batch).__name__}")
        return model(batch[0])

    return {
        "forward": forward,
        "loss": lambda outputs, batch: F.cross_entropy(outputs, batch[1]),
    }


def with_weights(module: "nn.Module", path: str) -> "nn.Module":
    """The module with the weights of a file. Raises BadInput, CorruptFile, Mismatch."""
    import waterfill
    from waterfill.model.install import install
    from waterfill.network.checkpoint import open_checkpoint
    from waterfill.network.running.wrapped import holder

    if path.endswith(".wf"):
        return waterfill.load(path).install(module)
    checkpoint = open_checkpoint(path)
    state: dict[str, Tensor] = {name: stored.load() for name, stored in checkpoint.tensors.items()}
    state |= {alias: state[name] for alias, name in checkpoint.aliases.items()}
    try:
        install(holder(module, state), state)
    except (Mismatch, RuntimeError) as error:
        raise Mismatch(f"{path} does not fit the network of --network: {_start(str(error))}") from error
    return module


def _start(message: str) -> str:
    """The beginning of PyTorch's message, which names every tensor of a network."""
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
