"""Which layers can be packed, and what stands in their places."""

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.utils import parametrize

from waterfill.network.layout import KERNEL, MATRIX, Layout
from waterfill.runtime.layers.base import PackedLayer
from waterfill.runtime.layers.convolution import PackedConvolution
from waterfill.runtime.layers.linear import PackedEmbedding, PackedLinear
from waterfill.runtime.layers.recurrent import PackedCell, PackedRecurrent
from waterfill.runtime.leaves import Term

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT, _CELLS = (nn.LSTM, nn.GRU, nn.RNN), (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
KINDS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
"""Layers that a table lists."""


def layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that can be packed, under each of their names: PyTorch's own, not what inherits from them, has hooks
    or another forward pass, and not those whose weights are computed."""
    for name, module in model.named_modules(remove_duplicate=False):
        changed = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        if not parametrize.is_parametrized(module) and not changed and weights_of(module):
            yield name, module


def weights_of(module: nn.Module) -> list[str]:
    """The names of the weights of a layer that can be packed; none for others."""
    if type(module) in (*_RECURRENT, *_CELLS):
        return [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight_")]
    if type(module) in (nn.Linear, nn.Embedding, *_CONVOLUTIONS) or is_conv1d(module):
        return ["weight"] if getattr(module, "weight", None) is not None else []
    return []


def unfit(layout: Layout, parts: int, module: nn.Module) -> str:
    """Why a weight of a layer is no matrix that can be packed, or ""."""
    wanted = KERNEL if isinstance(module, _CONVOLUTIONS) else MATRIX
    if layout.role != wanted or parts != 1 or layout.dtype.is_complex:
        return "no matrix of real numbers"
    return ""


def packed(terms: Mapping[str, Term], layer: nn.Module) -> PackedLayer:
    """A packed layer in the place of another. terms: by the names of its weights."""
    if isinstance(layer, _RECURRENT):
        return PackedRecurrent(terms, layer)
    if isinstance(layer, _CELLS):
        return PackedCell(terms, layer)
    if isinstance(layer, nn.Embedding):
        return PackedEmbedding(terms["weight"], layer)
    if isinstance(layer, _CONVOLUTIONS):
        return PackedConvolution(terms["weight"], layer)
    return PackedLinear(terms["weight"], layer, turned=is_conv1d(layer))


def is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is the `Conv1D` of transformers: x W + b."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")
