"""The network that a command works on: built by a function of the user's, its weights from a file."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from waterfill.cli.exit_codes import UsageError
from waterfill.errors import Mismatch

if TYPE_CHECKING:
    from torch import Tensor, nn

_LONGEST = 600  # characters of a message


def network_and_batches(network: str | None, data: str, *, targets: bool = False) -> "tuple[nn.Module, Iterable[Any]]":
    """What `--network` builds and `--data` yields; the data's function may give both. targets: those of an array file
    too. Raises UsageError, BadInput."""
    from waterfill.cli.inputs import load_inputs, load_model

    inputs = load_inputs(data, load_model(network) if network else None, targets)
    if inputs.model is None:
        raise UsageError("there is no network: name the function that builds it with --network module:function")
    return inputs.model, inputs.batches


def with_weights(module: "nn.Module", path: str) -> "nn.Module":
    """The module with the weights of a file. Raises BadInput, CorruptFile, Mismatch."""
    import waterfill
    from waterfill.model.compressed import check_names
    from waterfill.network.checkpoint import open_checkpoint

    if path.endswith(".wf"):
        return waterfill.load(path).install(module)
    checkpoint = open_checkpoint(path)
    state: dict[str, Tensor] = {name: stored.load() for name, stored in checkpoint.tensors.items()}
    state |= {alias: state[name] for alias, name in checkpoint.aliases.items()}
    state = _as_wanted(module, state)
    wanted, found = ({name: tuple(t.shape) for name, t in own.items()} for own in (module.state_dict(), state))
    try:
        check_names(wanted, found, type(module).__name__)
        module.load_state_dict(state, strict=True)
    except (Mismatch, RuntimeError) as error:
        raise Mismatch(f"{path} does not fit the network of --network: {_start(str(error))}") from error
    return module


def _start(said: str) -> str:
    """The beginning of what PyTorch says, which names every tensor of a network."""
    line = " ".join(said.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def _as_wanted(module: "nn.Module", state: "dict[str, Tensor]") -> dict[str, Any]:
    """The state with tied names that the file leaves out, as .safetensors files do."""
    own = module.state_dict(keep_vars=True)
    known = {id(value): name for name, value in own.items() if name in state}
    missing = {name: known[id(value)] for name, value in own.items() if name not in state and id(value) in known}
    return state | {name: state[other] for name, other in missing.items()}
