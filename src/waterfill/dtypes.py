"""Number types by name, and tensors as the bytes they are."""

import torch
from torch import Tensor

STORED = (  # a type's place is a part of its number in files (`parts.dense`): append only
    *("float32", "bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "uint16", "uint32", "uint64", "complex32", "float4_e2m1fn_x2"),
)
"""The number types that a file can hold, by PyTorch's names."""


def octets(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in order of its entries, uint8 [bytes]."""
    whole = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # one entry counts as contiguous whatever its stride, but only a stride of one can be viewed as bytes
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)


_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that a manifest uses, such as 'float32'."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a manifest's name. Raises KeyError for an unknown one."""
    return _DTYPES[name]
