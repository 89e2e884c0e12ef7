"""Fixed-rate quantization: codes of a given number of bits, a float16 scale for every group of columns.

This is the form that other inference engines take. Each scale is the best of a few clipping ranges for its group.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.codes import matrix
from waterfill.coding.codes.plan import Frequencies
from waterfill.coding.stream import Reader, Sink
from waterfill.importance import Importance
from waterfill.part import Codes, Part, Product

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6)
_LARGEST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True, eq=False)
class GroupedPart(Part):
    """codes [rows, cols] (int8); scales [rows, groups] (float16); zeros [rows, groups] (int16) or None.

    Column c is of group c // group; restored as (code - zero) * scale in float32.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int
    kind: ClassVar[int] = 4

    @cached_property
    def plan(self) -> matrix.Plan:
        """The plan by which the codes are written."""
        return matrix.plan(self.codes.numpy())

    def dense(self) -> Tensor:
        group_of = torch.arange(self.shape[1], dtype=torch.int64, device="cpu") // self.group
        codes = self.codes.float()
        if self.zeros is not None:
            codes -= self.zeros.float()[:, group_of]
        return codes.mul_(self.scales.float()[:, group_of])

    def product(self) -> Product:
        return Codes(self.codes, self.scales.float(), self.zeros, group=self.group)

    def frequencies(self) -> Frequencies | None:
        return self.plan.frequencies()

    def write(self, out: Sink) -> None:
        out.uint(self.group)
        out.uint(int(self.zeros is not None))
        out.raw(self.scales.numpy().astype("<f2").tobytes())
        if self.zeros is not None:
            out.ints(self.zeros.numpy())
        out.put(self.plan)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        rows, cols = shape
        group = src.uint(max(cols, 1))
        if group == 0:
            raise src.fail("groups of no columns")
        offset = src.uint(1)
        groups = -(-cols // group)
        scales = torch.from_numpy(np.frombuffer(src.raw(2 * rows * groups), "<f2").astype(np.float16))
        if not bool(torch.isfinite(scales).all()):
            raise src.fail("a scale that is not finite")
        zeros = src.ints(rows * groups) if offset else None
        if zeros is not None and len(zeros) and not -128 <= zeros.min() <= zeros.max() <= 127:
            raise src.fail("a zero point out of range")
        codes = matrix.read(src, rows, cols)
        if codes.dtype != np.int8:
            raise src.fail("fixed-rate codes of more than eight bits")
        points = None if zeros is None else torch.from_numpy(zeros.astype(np.int16)).reshape(rows, groups)
        return cls(shape, torch.from_numpy(codes), scales.reshape(rows, groups), points, group)

    def describe(self) -> str:
        return f"quantized, groups of {self.group}"


@dataclass(frozen=True)
class FixedRate:
    """bits: of every code. group: columns that share a scale. symmetric: without zero points."""

    bits: int
    group: int
    symmetric: bool

    def round(self, blocks: Tensor, clip: float) -> tuple[Tensor, Tensor, Tensor]:
        """Scales and zero points [rows, groups] and codes [rows, groups, group], float32, for one clipping range."""
        low, high = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        if self.symmetric:
            scale = blocks.abs().amax(2) * clip / high
        else:  # a range that includes zero: its zero point is a code too, as inference engines require
            least, most = clip * blocks.amin(2).clamp(max=0), clip * blocks.amax(2).clamp(min=0)
            scale = (most - least) / (high - low)
        scale = scale.clamp(max=_LARGEST).half().float()
        safe = torch.where(scale > 0, scale, 1.0)
        zero = torch.zeros_like(scale) if self.symmetric else (low - least / safe).round().clamp(low, high)
        codes = (blocks / safe[..., None] + zero[..., None]).round().clamp(low, high)
        return scale, zero, codes


def fit_grouped(target: Tensor, importance: Importance, rate: FixedRate) -> GroupedPart:
    """Fixed-rate codes for target [rows, cols], each group with the clipping range of least distortion."""
    rows, cols = target.shape
    group = max(1, min(rate.group, cols))
    groups = -(-cols // group)
    padded = torch.zeros(rows, groups * group, dtype=torch.float32, device="cpu")
    weight = torch.zeros(groups * group, dtype=torch.float32, device="cpu")
    padded[:, :cols] = target
    weight[:cols] = importance.column_weights(cols)
    blocks = padded.view(rows, groups, group)
    scale, zero, codes = rate.round(blocks, _CLIPS[0])
    least = _lost(blocks, (scale, zero, codes), weight)
    for clip in _CLIPS[1:]:
        trial = rate.round(blocks, clip)
        lost = _lost(blocks, trial, weight)
        better = lost < least
        least = torch.where(better, lost, least)
        scale, zero = torch.where(better, trial[0], scale), torch.where(better, trial[1], zero)
        codes = torch.where(better[..., None], trial[2], codes)
    flat = codes.reshape(rows, groups * group)[:, :cols].to(torch.int8).contiguous()
    return GroupedPart((rows, cols), flat, scale.half(), None if rate.symmetric else zero.to(torch.int16), group)


def _lost(blocks: Tensor, trial: tuple[Tensor, Tensor, Tensor], weight: Tensor) -> Tensor:
    """Weighted squared error of each group, [rows, groups]."""
    scale, zero, codes = trial
    error = (blocks - (codes - zero[..., None]) * scale[..., None]).square()
    return (error * weight.view(1, -1, blocks.shape[2])).sum(2)
