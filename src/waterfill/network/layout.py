"""Lays a tensor out as matrices [rows, cols]: the only place that distinguishes convolutions from embeddings.

A convolution [out, in / groups, *kernel] is one matrix of `out` rows; an embedding, a linear layer and the gates of a
recurrent layer are matrices already; stacked expert weights [experts, rows, cols] are a matrix each; a tensor with one
dimension is one row. A complex number is a pair of reals in a matrix, one behind the other. What is neither is kept bit
for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.errors import CorruptFile
from waterfill.storage.manifest import KERNEL, MATRIX, RAW, STACK, VECTOR

_LONGEST_KERNEL = 31  # a third dimension up to this size is taken for a kernel in a state dict
_ROUNDED = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.complex32, torch.complex64, torch.complex128),
)


def can_be_rounded(dtype: torch.dtype) -> bool:
    """Whether numbers of a type are weights that may be rounded; all others are kept bit for bit."""
    return dtype in _ROUNDED


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The type of the real numbers that those of a type are made of."""
    return dtype.to_real() if dtype.is_complex else dtype


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
    def numbers(self) -> int:
        """Real numbers of the tensor: a complex entry has two."""
        return self.entries * (2 if self.dtype.is_complex else 1)

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
        each = 2 if self._in_pairs else 1
        if self.role == VECTOR or len(shape) < 2:
            return 1, each * math.prod(shape)
        return shape[0], each * math.prod(shape[1:])

    @property
    def _in_pairs(self) -> bool:
        """Whether the matrices hold the real and imaginary parts of complex numbers."""
        return self.dtype.is_complex and self.role != RAW

    def split(self, tensor: Tensor, matrices: slice = slice(None), rows: slice = slice(None)) -> list[Tensor]:
        """The matrices of a tensor, float32 unless raw; or some of them, or some of their rows: no others are read."""
        if not self.count:
            return []
        values = tensor.detach()
        if self._in_pairs:
            values = torch.view_as_real(values.resolve_conj())
        values = values.reshape(self.count, *self.matrix)[matrices, rows]
        return list((values if self.role == RAW else values.float()).unbind(0))

    def join(self, matrices: Sequence[Tensor]) -> Tensor:
        """The tensor of these matrices, in its own shape and dtype. Raises CorruptFile if a part has another."""
        if not matrices:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")
        stored = self.dtype if self.role == RAW else torch.float32
        wrong = next((m.dtype for m in matrices if m.dtype != stored), None)
        if wrong is not None:
            raise CorruptFile(f"a tensor of {self.dtype} is stored as {wrong}; the file is damaged")
        whole = matrices[0] if len(matrices) == 1 else torch.stack(list(matrices))
        if self.role == RAW:
            return whole.reshape(self.shape)
        whole = within(whole, real_of(self.dtype)).to(real_of(self.dtype))
        return torch.view_as_complex(whole.reshape(*self.shape, 2)) if self._in_pairs else whole.reshape(self.shape)


def within(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values (float32) clamped to what a narrower type holds: an error at the edge of its range must not become an
    infinity."""
    limits = torch.finfo(dtype)
    if limits.max >= torch.finfo(values.dtype).max or not values.numel():
        return values
    least, most = (float(edge) for edge in values.aminmax())
    return values.clamp(limits.min, limits.max) if least < limits.min or most > limits.max else values


def _looks_like_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape in a state dict is taken for a convolution."""
    return len(shape) in (4, 5) or (len(shape) == 3 and shape[2] <= _LONGEST_KERNEL)


def layout_of(shape: tuple[int, ...], dtype: torch.dtype, role: str | None = None) -> Layout:
    """The layout of a tensor; `role` where a module knows it, else it is read off the shape."""
    entries = math.prod(shape)
    if not can_be_rounded(dtype) or entries == 0 or role == RAW:
        return Layout(shape, dtype, RAW)
    if len(shape) < 2 or max(shape) == entries:
        return Layout(shape, dtype, VECTOR)
    if dtype.is_complex:  # a kernel's positions would not lie side by side
        return Layout(shape, dtype, MATRIX)
    if role is None:
        role = KERNEL if _looks_like_kernel(shape) else STACK if len(shape) == 3 else MATRIX
    return Layout(shape, dtype, role)
