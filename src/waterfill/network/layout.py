"""How a tensor is seen as matrices [rows, cols]: the only place that knows convolutions from embeddings.

A convolution [out, in / groups, *kernel] is one matrix of `out` rows; an embedding, a linear layer and the gates of a
recurrent layer are matrices already; stacked expert weights [experts, rows, cols] are a matrix each; a tensor with one
dimension is one row. What is not a floating-point tensor is kept bit for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.errors import BadInput, CorruptFile
from waterfill.storage.manifest import KERNEL, MATRIX, RAW, STACK, VECTOR

_LONGEST_KERNEL = 31  # a third dimension up to this size is a kernel in a state dict that does not say
_COMPRESSIBLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Layout:
    """shape and dtype of a tensor and its role: vector, matrix, kernel (convolution), stack of matrices, or raw."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    role: str

    @property
    def entries(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The spatial extent behind a channel; () where there is none."""
        conv = self.role == KERNEL or (self.role == RAW and _looks_like_kernel(self.shape))
        return self.shape[2:] if conv and math.prod(self.shape[2:]) > 1 else ()

    @property
    def count(self) -> int:
        """How many matrices; none for an empty tensor."""
        if self.entries == 0:
            return 0
        return self.shape[0] if self.role == STACK else 1

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of each matrix."""
        shape = self.shape[1:] if self.role == STACK else self.shape
        if self.role == VECTOR or len(shape) < 2:
            return 1, math.prod(shape)
        return shape[0], math.prod(shape[1:])

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The matrices of a tensor, float32 unless raw."""
        values = tensor.detach() if self.role == RAW else tensor.detach().float()
        return list(values.reshape(self.count, *self.matrix).unbind(0)) if self.count else []

    def join(self, matrices: Sequence[Tensor]) -> Tensor:
        """The tensor of these matrices, in its own shape and dtype. Raises CorruptFile if a part has another."""
        if not matrices:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")
        stored = self.dtype if self.role == RAW else torch.float32
        wrong = next((m.dtype for m in matrices if m.dtype != stored), None)
        if wrong is not None:
            raise CorruptFile(f"a tensor of {self.dtype} is stored as {wrong}; the file is damaged")
        whole = matrices[0] if len(matrices) == 1 else torch.stack(list(matrices))
        if (
            self.role != RAW and self.dtype == torch.float16
        ):  # an error at the edge of its range must not become an infinity
            whole = whole.clamp(torch.finfo(self.dtype).min, torch.finfo(self.dtype).max)
        return whole.reshape(self.shape).to(self.dtype)


def _looks_like_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a state dict that does not say holds a convolution in this shape."""
    return len(shape) in (4, 5) or (len(shape) == 3 and shape[2] <= _LONGEST_KERNEL)


def layout_of(shape: tuple[int, ...], dtype: torch.dtype, role: str | None = None) -> Layout:
    """The layout of a tensor; `role` where a module knows it, else it is read off the shape."""
    entries = math.prod(shape)
    if dtype not in _COMPRESSIBLE or entries == 0:
        return Layout(shape, dtype, RAW)
    if len(shape) < 2 or max(shape) == entries:
        return Layout(shape, dtype, VECTOR)
    if role is None:
        role = KERNEL if _looks_like_kernel(shape) else STACK if len(shape) == 3 else MATRIX
    return Layout(shape, dtype, role)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise BadInput if a tensor that is to be compressed holds NaN, infinity or what float32 cannot hold."""
    wide = tensor.dtype == torch.float64  # its entries may be finite and yet overflow
    if not wide and math.isfinite(float(tensor.sum(dtype=torch.float64))):
        return
    bad = int((~torch.isfinite(tensor.float())).sum())
    if bad:
        raise BadInput(
            f"tensor {name!r} holds {bad} values that are NaN, infinite or beyond float32; repair the checkpoint, "
            "or keep every bit as it is with lossless=True (--lossless)"
        )
