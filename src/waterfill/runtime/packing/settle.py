"""What else of a network is set when its layers are packed: ways around them, and methods that would break them."""

from functools import partial
from typing import Any

from torch import nn

from waterfill.errors import BadInput
from waterfill.runtime.layers.base import NO_TRAINING, PackedLayer
from waterfill.runtime.leaves import Term

_REFUSED = {
    "save_pretrained": "a packed network is no checkpoint of transformers: keep the .wf file and pack it again, or "
    "save waterfill.load(file).install(network), which is dense",
    "push_to_hub": "a packed network is no checkpoint of transformers: share the .wf file",
    "resize_token_embeddings": "the tokens of a packed network are those it was compressed with: resize the embeddings "
    "first, and compress then",
}


def settle(model: nn.Module, large: int) -> None:
    """Make the modules around packed layers leave these as they are. Nothing happens where none is packed.

    large: inputs from which layers multiply as floats, 0 for the number that is measured.
    """
    for term in model.modules():
        if isinstance(term, Term):
            term.large = large
    around = [module for module in model.modules() if not isinstance(module, PackedLayer)]
    around = [module for module in around if any(isinstance(inner, PackedLayer) for inner in module.modules())]
    for module in around:
        _leave_fast_path(module)
        object.__setattr__(module, "train", partial(_train, module))
        for name, why in _REFUSED.items():
            if hasattr(type(module), name):
                object.__setattr__(module, name, partial(_refuse, why))
        if hasattr(type(module), "tie_weights"):  # which layers share their matrices already
            object.__setattr__(module, "tie_weights", _stay_tied)


def _leave_fast_path(module: nn.Module) -> None:
    """Transformer layers of PyTorch have a way of their own in evaluation mode, which reads the weights of their layers
    and would restore packed ones each time; where layers are packed, they go the way of all others."""
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
    elif isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # which says that there is no fast form of its activation


def _train(module: nn.Module, mode: bool = True) -> nn.Module:
    """As the module's own, but refused before any of its layers has changed."""
    if mode:
        raise BadInput(NO_TRAINING)
    return type(module).train(module, mode)


def _refuse(why: str, *_: Any, **__: Any) -> None:
    raise BadInput(why)


def _stay_tied(*_: Any, **__: Any) -> None:
    """Nothing."""
