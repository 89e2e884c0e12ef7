"""Inputs rounded to 8 bits in the order that int8 convolutions read, and outputs in the order that the inputs had."""

import torch
from torch import Tensor

from waterfill.coding import native

LARGEST = 255
"""The largest integer of an input; the least is 0."""


def channels_last(x: Tensor) -> bool:
    """Whether inputs [batch, channels, height, width] lie in memory so that channels come last, as PyTorch's own
    convolutions see it: their outputs then do too."""
    return x.stride(1) == 1 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def format_of(x: Tensor) -> torch.memory_format:
    """The order in memory of outputs for such inputs."""
    return torch.channels_last if channels_last(x) else torch.contiguous_format


def scaled(x: Tensor, factors: Tensor, zero: "Tensor | float") -> Tensor:
    """Inputs of which the whole parts are their integers, clipped; a new tensor. factors: [channels]."""
    return (x * factors.view(1, -1, 1, 1)).add_(zero + 0.5).clamp_(0, LARGEST)


def rounded(x: Tensor, factors: Tensor, zero: int) -> Tensor | None:
    """The integers of inputs (float32, on a CPU) in a uint8 tensor, channels last; None where an input is NaN."""
    last = channels_last(x)
    if native.core is None:
        if bool(x.isnan().any()):
            return None
        return scaled(x, factors, zero).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    x = x if last else x.contiguous()
    out = torch.empty(x.shape, dtype=torch.uint8, device="cpu", memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    places = [x.data_ptr(), factors.data_ptr(), out.data_ptr()]
    sizes = [batch, channels, height * width]
    nan = native.core.round_inputs(places, sizes, zero + 0.5, last, torch.get_num_threads())
    return None if nan else out


def first(x: Tensor) -> Tensor:
    """Outputs of an int8 convolution (float32) as PyTorch has tensors by default."""
    if native.core is None or not channels_last(x):
        return x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    batch, channels, height, width = x.shape
    sizes = [batch, channels, height * width]
    native.core.channels_first([x.data_ptr(), out.data_ptr()], sizes, torch.get_num_threads())
    return out
