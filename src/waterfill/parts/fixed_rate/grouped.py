"""Fixed-rate quantization: codes of a given number of bits, a float16 scale for every group of columns.

This is the form that other inference engines take. Each scale is the best of a few clipping ranges for its
group, then fitted to the codes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from waterfill.parts.quantizer.bounded import fed_back

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6)
_UNCLIPPED = 4  # bits from which on nothing is clipped without inputs
_REFITS = 2  # more change little
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

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest code."""
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    def ranges(self, blocks: Tensor, clips: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
        """Scales and zero points [rows, groups], float32, for one clipping range after another.

        Without zero points there is one more negative code than positive ones: a scale may be negative, so that the
        largest entry of a group, whatever its sign, is that code.
        """
        low, high = self.limits
        if self.symmetric:
            largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))[..., 0]
            for clip in clips:
                for scale in (largest.abs() * clip / high, largest * clip / low):
                    yield _narrow(scale), torch.zeros_like(scale)
            return
        for clip in clips:  # a range that includes zero: its zero point is a code too, as inference engines require
            least, most = clip * blocks.amin(2).clamp(max=0), clip * blocks.amax(2).clamp(min=0)
            scale = _narrow((most - least) / (high - low))
            yield scale, (low - least / _safe(scale)).round().clamp(low, high)

    def codes(self, blocks: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest codes [rows, groups, group], float32."""
        low, high = self.limits
        return (blocks / _safe(scale)[..., None] + zero[..., None]).round().clamp(low, high)


def _narrow(scale: Tensor) -> Tensor:
    """Scales as float16 holds them."""
    return scale.clamp(-_LARGEST, _LARGEST).half().float()


def _safe(scale: Tensor) -> Tensor:
    """Scales to divide by."""
    return torch.where(scale != 0, scale, 1.0)


class _Best:
    """The codes of least weighted squared error so far, of each group. weight: [groups, group]."""

    def __init__(self, blocks: Tensor, weight: Tensor, rate: FixedRate) -> None:
        self.blocks, self.weight, self.rate = blocks, weight, rate
        self.scale, self.zero = (torch.zeros(blocks.shape[:2], dtype=torch.float32, device="cpu") for _ in range(2))
        self.codes = torch.zeros_like(blocks)
        self.lost = torch.full(blocks.shape[:2], torch.inf, dtype=torch.float32, device="cpu")

    def offer(self, scale: Tensor, zero: Tensor) -> None:
        """Take scales and zero points where they are better."""
        codes = self.rate.codes(self.blocks, scale, zero)
        error = (self.blocks - (codes - zero[..., None]) * scale[..., None]).square()
        lost = (error * self.weight).sum(2)
        better = lost < self.lost
        self.lost = torch.where(better, lost, self.lost)
        self.scale, self.zero = torch.where(better, scale, self.scale), torch.where(better, zero, self.zero)
        self.codes = torch.where(better[..., None], codes, self.codes)

    def refit(self) -> None:
        """Offer the scales that are best for the codes as they are, by least squares."""
        steps = self.codes - self.zero[..., None]
        squares = (steps.square() * self.weight).sum(2)
        scale = (steps * self.blocks * self.weight).sum(2) / torch.where(squares > 0, squares, 1.0)
        self.offer(_narrow(scale), self.zero)


def fit_grouped(target: Tensor, importance: Importance, rate: FixedRate) -> GroupedPart:
    """Fixed-rate codes for target [rows, cols], each group with the range and the scale of least distortion.

    With a Gram matrix errors are fed back to the columns that follow (GPTQ, arXiv 2210.17323), where that is better.
    """
    rows, cols = target.shape
    group = max(1, min(rate.group, cols))
    groups = -(-cols // group)
    padded = torch.zeros(rows, groups * group, dtype=torch.float32, device="cpu")
    weight = torch.zeros(groups * group, dtype=torch.float32, device="cpu")
    padded[:, :cols] = target
    weight[:cols] = importance.column_weights(cols)
    best = _Best(padded.view(rows, groups, group), weight.view(groups, group), rate)
    for scale, zero in rate.ranges(best.blocks, _clips(importance, rate.bits)):
        best.offer(scale, zero)
    for _ in range(_REFITS):
        best.refit()
    flat = best.codes.reshape(rows, groups * group)[:, :cols].to(torch.int8).contiguous()
    zeros = None if rate.symmetric else best.zero.to(torch.int16)
    plain = GroupedPart((rows, cols), flat, best.scale.half(), zeros, group)
    if importance.gram is None or not target.numel():
        return plain
    other = _fed_back(target, importance, rate, plain)
    lost = [importance.expected(target - part.dense()) for part in (plain, other)]
    return other if lost[1] < lost[0] else plain


def _clips(importance: Importance, bits: int) -> Sequence[float]:
    """The clipping ranges to try. Where nothing is known of the inputs, codes of 4 bits and more clip nothing: large
    weights matter more than their squares count (docs/decisions.md)."""
    known = importance.gram is not None or importance.diagonal.ndim > 0
    return _CLIPS if known or bits < _UNCLIPPED else _CLIPS[:1]


def _fed_back(target: Tensor, importance: Importance, rate: FixedRate, plain: GroupedPart) -> GroupedPart:
    """The part of the same scales and zero points whose codes compensate for the errors of those before them."""
    of = torch.arange(target.shape[1], dtype=torch.int64, device="cpu") // plain.group
    low, high = rate.limits
    zeros = torch.zeros(len(target), 1, dtype=torch.float32, device="cpu")
    zeros = zeros if plain.zeros is None else plain.zeros.float()[:, of]
    lower = torch.from_numpy(importance.lower).float()
    steps = _safe(plain.scales.float()[:, of])
    codes, _ = fed_back(target, steps, lower, (low - zeros, high - zeros))
    return replace(plain, codes=(codes + zeros).to(torch.int8))
