"""Whole rows of packed matrices as floats again, on a CPU; to the bit the same on every machine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from waterfill.coding import native
from waterfill.runtime import layout, reference


def codes(arrays: Sequence[Tensor | None], bits: int, group: int, cols: int) -> Tensor:
    """The matrix [rows, cols] (float32) of small codes.

    arrays: data, scales, zero points or None, scales of columns or None, and the three of corrections, if any, each as
    in `reference.Arrays`.
    """
    data, scales = arrays[:2]
    assert data is not None and scales is not None  # a matrix has both
    if native.core is None:
        zeros, columns = (None if v is None else v.numpy() for v in arrays[2:4])
        corrections = [v.numpy() for v in arrays[4:] if v is not None] or None
        numbers = (group, cols, bits)
        plain = reference.Arrays(data.numpy(), scales.numpy(), zeros, columns, corrections, *numbers)
        return torch.from_numpy(reference.restored(plain))
    out = torch.empty(len(data), cols, dtype=torch.float32, device="cpu")
    places = [0 if v is None else v.data_ptr() for v in (out, *arrays, *[None] * (7 - len(arrays)))]
    native.core.codes_restored(places, [len(data), cols, scales.shape[1], group], bits, torch.get_num_threads())
    return out


def levels(data: Tensor, table: Tensor, bits: int, cols: int) -> Tensor:
    """The matrix [rows, cols] (float32) of values `table` [2^bits] at the packed places `data` [rows, row bytes]."""
    if native.core is None:
        places = layout.unpacked(data.numpy(), cols, bits).astype("int64") + (1 << bits - 1)
        return torch.from_numpy(table.numpy()[places])
    out = torch.empty(len(data), cols, dtype=torch.float32, device="cpu")
    arrays = [v.data_ptr() for v in (out, data, table)]
    native.core.levels_restored(arrays, [len(data), cols], bits, torch.get_num_threads())
    return out
