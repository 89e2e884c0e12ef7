"""What became of the layers of a packed network."""

from typing import Any

from torch import Tensor, nn

from waterfill.runtime.int8.loss import LOSS, Loss
from waterfill.runtime.layers.base import PackedLayer
from waterfill.runtime.packing.sites import KINDS, is_conv1d, weights_of

WHY = "_waterfill_why"
"""The attribute of a layer that says why it stays, or how fast it is."""
_ATTENTION = "PyTorch's MultiheadAttention reads its matrices itself"
_OUTPUT = "NonDynamicallyQuantizableLinear"  # of such an attention


def table(model: nn.Module) -> list[dict[str, Any]]:
    """How each linear layer, convolution, embedding, recurrent layer and stack of matrices of a packed network runs.

    A row is a dict: name, runs ("packed" or "dense"), form, bytes in memory, and why or how fast where it is known. The
    bytes of a weight that several layers share stand in the first of their rows. After `quantize_activations`, "form"
    names inputs of 8 bits, and a last row, "whole network", has the "loss" of the whole.
    """
    rows, seen = [], set[int]()
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            tensors = [value for term in module.terms() for value in term.buffers()]
            form, more = _words(module), sum(term.beside for term in module.terms())
            runs = next((term.runs for term in module.terms()), "packed")
        elif isinstance(module, KINDS) or is_conv1d(module):
            tensors = list(module.parameters())
            form, runs, more = "restored weights", "dense", 0
        else:
            stacks = [(n, v) for n, v in module.named_parameters(recurse=False) if v.ndim == 3]
            if isinstance(module, nn.MultiheadAttention):
                inner = [(n, v) for n, v in module.named_parameters(recurse=False) if v.ndim == 2]
                rows += [_of_stack(f"{name}.{n}" if name else n, v, _ATTENTION) for n, v in inner]
            rows += [_of_stack(f"{name}.{n}" if name else n, v, getattr(module, f"{WHY}_{n}", "")) for n, v in stacks]
            continue
        own = {id(value): value for value in tensors if id(value) not in seen}
        seen |= own.keys()
        size = sum(value.numel() * value.element_size() for value in own.values()) + (more if own else 0)
        form += "" if own or not tensors else ", shared"
        rows.append({"name": name, "runs": runs, "form": form, "bytes": size, "why": _why(module)})
    loss = getattr(model, LOSS, None)
    return rows if loss is None else [*rows, _of_whole(loss)]


def _why(module: nn.Module) -> str:
    """Why a layer stays, or how fast it is."""
    found: str = getattr(module, WHY, "")
    if found or isinstance(module, PackedLayer) or weights_of(module):
        return found
    own = type(module).__name__
    return _ATTENTION if own == _OUTPUT else f"{own} may use its weights in ways of its own"


def _of_whole(loss: Loss) -> dict[str, Any]:
    """The row of a network some of whose layers round their inputs."""
    some, layers = loss.layers
    form = f"8-bit inputs in {some} of {layers} layers"
    return {"name": "whole network", "runs": "packed", "form": form, "bytes": 0, "why": loss.words, "loss": loss.value}


def _words(layer: PackedLayer) -> str:
    """What its matrices are; of several, without the numbers in which they differ."""
    words = [term.words for term in layer.terms()]
    return words[0] if len(words) == 1 else ", ".join(dict.fromkeys(each.partition(",")[0] for each in words))


def _of_stack(name: str, value: Tensor, why: str) -> dict[str, Any]:
    """The row of a matrix or a stack of matrices that is dense."""
    size = value.numel() * value.element_size()
    return {"name": name, "runs": "dense", "form": "restored weights", "bytes": size, "why": why}
