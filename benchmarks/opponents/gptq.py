"""GPTQ in groups of 128 columns, the opponent of the benchmarks: plain torch, blocked as published (arXiv 2210.17323).

Column by column, in blocks of 128: a column is rounded, and the columns after it take over its error through the
upper Cholesky factor of the inverse of the damped Hessian; later blocks hear of a block's errors at once. Scale and
zero point of a group are the range of its weights as they are when the sweep arrives there. With the identity as
Hessian nothing is passed on: that is rounding to nearest on the same grid, the other opponent.

The Hessian is that of the layer's inputs in the uncompressed network. Tensors of fewer than two dimensions are float16,
integers stay as they are; bytes count no header, no name and no checksum. A budget between two widths is met by giving
some layers the larger one, those first whose error falls most for a byte, and one layer the larger one for some rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill import Importance

BLOCK = 128
GROUP = 128
DAMPING = 0.01
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
_SCALE_BITS = 16


@dataclass(frozen=True)
class Quantized:
    """codes [rows, cols] from 0 to 2^width - 1; scales (float16) and zeros [rows, groups]."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    width: int
    group: int = GROUP

    def dense(self) -> Tensor:
        """The matrix [rows, cols], float32."""
        at = torch.arange(self.codes.shape[1]) // self.group
        return (self.codes - self.zeros[:, at]) * self.scales.float()[:, at]

    @property
    def bits(self) -> int:
        """Codes and zero points of `width` bits, scales of 16."""
        return self.codes.numel() * self.width + self.scales.numel() * (_SCALE_BITS + self.width)

    @property
    def entropy_bits(self) -> float:
        """The same, with codes at their entropy in this layer: what an ideal coder with a free table would need."""
        counts = torch.bincount(self.codes.flatten().long()).double()
        chances = counts[counts > 0] / self.codes.numel()
        codes = -self.codes.numel() * float((chances * chances.log2()).sum())
        return codes + self.scales.numel() * (_SCALE_BITS + self.width)


def quantize(weight: Tensor, hessian: Tensor, width: int, group: int = GROUP) -> Quantized:
    """GPTQ of `weight` [rows, cols] under `hessian` [cols, cols], whose scale does not matter.

    `group` divides the block of 128 columns or is a multiple of it. Columns without inputs become zero.
    """
    rows, cols = weight.shape
    if BLOCK % group and group % BLOCK:
        raise ValueError(f"group {group} neither divides {BLOCK} nor is a multiple of it")
    factor, dead = _inverse_factor(hessian)
    W = weight.float().masked_fill(dead, 0.0)
    codes = torch.zeros(rows, cols)
    scales = torch.ones(rows, -(-cols // group), dtype=torch.float16)
    zeros = torch.zeros(scales.shape)
    for start in range(0, cols, BLOCK):
        end = min(start + BLOCK, cols)
        errors = torch.zeros(rows, end - start)
        for i in range(start, end):
            g = i // group
            if i % group == 0:
                scales[:, g], zeros[:, g] = _grid(W[:, i : i + group], width)
            scale = scales[:, g].float()
            codes[:, i] = ((W[:, i] / scale).round() + zeros[:, g]).clamp(0, 2**width - 1)
            error = (W[:, i] - (codes[:, i] - zeros[:, g]) * scale) / factor[i, i]
            W[:, i:end] -= torch.outer(error, factor[i, i:end])
            errors[:, i - start] = error
        W[:, end:] -= errors @ factor[start:end, end:]
    return Quantized(codes, scales, zeros, width, group)


def _inverse_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the inverse of the damped Hessian (float32), and which columns are dead."""
    H = hessian.double().clone()
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1.0
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse, upper=True).float(), dead


def _grid(weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Scale (float16) and zero point of every row, from its range with zero in it."""
    low, high = weights.amin(1).clamp_max(0.0), weights.amax(1).clamp_min(0.0)
    flat = low == high
    low, high = low.masked_fill(flat, -1.0), high.masked_fill(flat, 1.0)
    smallest = torch.finfo(torch.float16).tiny
    scale = ((high - low) / (2**width - 1)).clamp(smallest, torch.finfo(torch.float16).max).half()
    return scale, (-low / scale.float()).round().clamp(0, 2**width - 1)


def hessian_of(importance: Importance | None, cols: int) -> Tensor:
    """The second moment of the inputs [cols, cols]; the identity where nothing is known of them."""
    if importance is None:
        return torch.eye(cols)
    if importance.gram is None:
        return torch.diag(importance.diagonal.float().expand(cols))
    return torch.block_diag(*[importance.gram.float()] * (cols // len(importance.gram)))


class Opponent:
    """All layers of a network at the widths that are asked for; `importance` of none of them is rounding to nearest."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        importance: Mapping[str, Importance],
        coded: bool = False,
        group: int = GROUP,
    ) -> None:
        """`coded`: codes count their entropy, not their width. group: columns that share a scale."""
        self.state, self.importance, self.coded, self.group = state, importance, coded, group
        self._known: dict[tuple[str, int], Quantized] = {}
        self.layers = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.ndim >= 2]

    def at(self, name: str, width: int) -> Quantized:
        """One layer."""
        if (name, width) not in self._known:
            matrix = self.state[name].flatten(1)
            hessian = hessian_of(self.importance.get(name), matrix.shape[1])
            self._known[name, width] = quantize(matrix, hessian, width, self.group)
        return self._known[name, width]

    def size(self, width: int) -> int:
        """Bytes with every layer at one width."""
        return self._rest() + sum(math.ceil(self._bits(name, width) / 8) for name in self.layers)

    def within(self, budget: int) -> tuple[int, dict[str, Tensor]]:
        """Bytes, at most `budget`, and the state that comes back. Raises ValueError where one bit is too much."""
        fitting = [width for width in WIDTHS if self.size(width) <= budget]
        if not fitting:
            raise ValueError(f"{budget} bytes are less than one bit takes: {self.size(1)}")
        low = fitting[-1]
        size, restored = self.size(low), {name: self.at(name, low).dense() for name in self.layers}
        if low < WIDTHS[-1]:
            for name in sorted(self.layers, key=lambda name: self._gain(name, low), reverse=True):
                rows = len(restored[name])
                step = (self._bits(name, low + 1) - self._bits(name, low)) / 8 / rows
                taken = min(rows, int((budget - size - 1) / step))
                restored[name][:taken] = self.at(name, low + 1).dense()[:taken]
                size += math.ceil(taken * step)
                if taken < rows:
                    break
        return size, {name: self._restored(name, restored.get(name)) for name in self.state}

    def _gain(self, name: str, width: int) -> float:
        """How far the error of a layer falls for every bit of one more in width."""
        matrix = self.state[name].flatten(1).float()
        metric = self.importance.get(name) or Importance()
        low, high = self.at(name, width), self.at(name, width + 1)
        fall = metric.distortion(matrix - low.dense()) - metric.distortion(matrix - high.dense())
        return fall / (high.bits - low.bits)

    def _bits(self, name: str, width: int) -> float:
        """What a layer takes."""
        found = self.at(name, width)
        return found.entropy_bits if self.coded else found.bits

    def _rest(self) -> int:
        """Bytes of what is not quantized."""
        small = [tensor for name, tensor in self.state.items() if name not in self.layers]
        return sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in small)

    def _restored(self, name: str, matrix: Tensor | None) -> Tensor:
        tensor = self.state[name]
        if matrix is not None:
            return matrix.reshape(tensor.shape).to(tensor.dtype)
        return tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor
