"""Plain rounding to nearest in groups of 64: what everything is compared with.

Symmetric, a float16 scale from the largest magnitude of each group, codes of a whole number of bits packed without
coding; groups run through a tensor's entries in order, so that no row ends in a short one. Tensors of fewer than two
dimensions are float16, integers stay as they are. Its bytes count no header, no name and no checksum.
"""

import torch
from torch import Tensor

GROUP = 64
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def size(state: dict[str, Tensor], width: int) -> int:
    """Bytes of a state dict with codes of `width` bits."""
    return sum(_tensor_size(tensor, width) for tensor in state.values())


def _tensor_size(tensor: Tensor, width: int) -> int:
    if not tensor.is_floating_point():
        return tensor.numel() * tensor.element_size()
    if tensor.ndim < 2:
        return 2 * tensor.numel()
    return -(-tensor.numel() * width // 8) + 2 * -(-tensor.numel() // GROUP)


def rounded(state: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The state dict as it comes back."""
    return {name: _round_tensor(tensor, width) for name, tensor in state.items()}


def _round_tensor(tensor: Tensor, width: int) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    if tensor.ndim < 2:
        return tensor.half().to(tensor.dtype)
    flat = tensor.float().flatten()
    padded = torch.zeros(-(-len(flat) // GROUP) * GROUP)
    padded[: len(flat)] = flat
    groups = padded.view(-1, GROUP)
    largest = (1 << (width - 1)) - 1
    scales = (groups.abs().amax(1, keepdim=True) / largest).half().float()
    codes = (groups / scales.where(scales > 0, torch.ones(()))).round().clamp(-largest, largest)
    return (codes * scales).flatten()[: len(flat)].view(tensor.shape).to(tensor.dtype)
