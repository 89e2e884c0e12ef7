"""Number types by name, and tensors as the bytes they are."""

import torch
from torch import Tensor


def octets(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in order of its entries, uint8 [bytes]."""
    whole = tensor.detach().cpu().contiguous()
    # one entry counts as contiguous whatever its stride, but only a stride of one can be seen as bytes
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)


_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that a manifest uses, such as 'float32'."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a manifest's name. Raises KeyError for an unknown one."""
    return _DTYPES[name]
