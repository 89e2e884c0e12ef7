"""Uniform quantization: integer codes times one step, times row, channel and position scales where they pay.

Codes are chosen by distortion + price * bits under the densities by which they are then entropy coded:
`quantizer.candidates`, `coding.model`. They may be the states of a trellis: `quantizer.viterbi`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from waterfill.coding import trellis
from waterfill.coding.chunking import narrow
from waterfill.coding.codes import matrix
from waterfill.coding.codes.plan import Frequencies
from waterfill.coding.model import density_model
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadInput, BadRecipe
from waterfill.importance import Importance
from waterfill.part import Codes, Part, Product, Spec
from waterfill.parts.fixed_rate.grouped import FixedRate, fit_grouped
from waterfill.parts.quantizer.bounded import best_bounded
from waterfill.parts.quantizer.candidates import Choices, best_candidate
from waterfill.parts.quantizer.grid import FARTHEST, Grid
from waterfill.parts.quantizer.rescale import refitted

_MOST_FLAGS = 8 << 7 | 127


@dataclass(frozen=True, eq=False)
class QuantizedPart(Part):
    """codes [rows, cols] (int8, int16 or int32) on a `Grid`; kernel: the spatial extent behind a channel, or ().

    states: of the trellis that the codes run along, 0 for none.
    """

    codes: Tensor
    grid: Grid
    kernel: tuple[int, ...] = ()
    states: int = 0
    kind: ClassVar[int] = 3

    @cached_property
    def plan(self) -> matrix.Plan:
        """The plan by which the codes are written; made once, for the tally and the file."""
        return matrix.plan(self.codes.numpy(), self.kernel, self.states)

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Row scales [rows, 1], step included, and column scales [cols] (float32)."""
        row, col = self.grid.row_scales(self.shape[0]), self.grid.col_scales(self.shape[1])
        return torch.from_numpy(row)[:, None], torch.from_numpy(col)

    def with_codes(self, codes: Tensor) -> "QuantizedPart":
        """The part of other codes [rows, cols] on the same scales."""
        return replace(self, codes=torch.from_numpy(narrow(codes.cpu().numpy())))

    def dense(self) -> Tensor:
        return self.dense_rows(slice(None))

    def dense_rows(self, rows: slice) -> Tensor:
        """Some rows of the matrix."""
        return self.grid.restored(self.codes, rows)

    def product(self) -> Product:
        rows, columns = self.scales
        signs = torch.where(_more_above(self.codes), -1, 1)
        codes, rows = self.codes * signs.to(self.codes.dtype), rows * signs
        return Codes(codes, rows, columns=None if bool((columns == 1).all()) else columns)

    def frequencies(self) -> Frequencies | None:
        return self.plan.frequencies()

    def write(self, out: Sink) -> None:
        vectors = (self.grid.rows, self.grid.channels, self.grid.places)
        exponent = self.states.bit_length() - 1 if self.states else 0
        out.uint(sum((v is not None) << i for i, v in enumerate(vectors)) | len(self.kernel) << 3 | exponent << 7)
        for size in self.kernel:
            out.uint(size)
        out.float32(self.grid.step)
        for vector in vectors:
            if vector is not None:
                out.ints(vector)
        out.put(self.plan)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        flags = src.uint(_MOST_FLAGS)
        states = 1 << (flags >> 7) if flags >> 7 else 0
        if states and states not in trellis.STATES:
            raise src.fail(f"a trellis of {states} states")
        kernel = tuple(src.uint(1 << 20) for _ in range(flags >> 3 & 15))
        positions = int(np.prod(kernel, dtype=object)) if kernel else 1
        if positions == 0 or shape[1] % positions:
            raise src.fail(f"a kernel {kernel} that does not divide {shape[1]} columns")
        step = src.float32()
        lengths = (shape[0], shape[1] // positions, positions)
        vectors = [src.ints(n) if flags >> i & 1 else None for i, n in enumerate(lengths)]
        if any(v is not None and len(v) and np.abs(v).max() > FARTHEST for v in vectors):
            raise src.fail("a scale exponent is out of range")
        grid = Grid(step, *vectors)
        with np.errstate(over="ignore"):
            if grid.rows is not None and not np.isfinite(grid.row_scales(shape[0])).all():
                raise src.fail("a scale that overflows")
        return cls(shape, torch.from_numpy(matrix.read(src, *shape, kernel)), grid, kernel, states)

    def describe(self) -> str:
        vectors = {"row": self.grid.rows, "channel": self.grid.channels, "position": self.grid.places}
        scaled = [name for name, v in vectors.items() if v is not None]
        along = f", {self.states} states" if self.states else ""
        return "quantized" + along + (f", {'/'.join(scaled)} scales" if scaled else "")


@dataclass(frozen=True)
class Quantize(Spec):
    """Uniform quantization, entropy coded, its step set by the price; with `bits`, fixed-rate codes in groups.

    Codes are chosen on the device of the target; the part lies on the CPU.

    Args:
        bits: None for entropy-coded codes by the price; 2 to 8 for codes of so many bits with a float16 scale for each
            group of columns, the form that other inference engines take.
        group: with `bits`, the columns that share a scale; None for a whole row.
        symmetric: with `bits`, whether there are no zero points.
        states: without `bits`, the states of a trellis (4, 8, 16, 32, 64, 128 or 256), used where it costs less than
            scalar codes; 0 for scalar codes only.
        packed: without `bits`, codes that all fit 2, 3, 4, 5, 6 or 8 bits, so that a packed layer holds them so; what
            they take there is what they cost, not what they take in the file, where they are entropy coded too.

    Raises:
        BadRecipe: arguments outside these, or that exclude one another.

    Example:
        >>> part = Quantize(states=8).fit(weight, Importance(), price=1e-4)
        >>> print(part.bits / weight.numel(), "bits per weight")
    """

    bits: int | None = None
    group: int | None = None
    symmetric: bool = True
    states: int = 0
    packed: bool = False

    def __post_init__(self) -> None:
        if self.states not in (0, *trellis.STATES):
            raise BadRecipe(
                f"Quantize(states={self.states!r}): a trellis has {', '.join(map(str, trellis.STATES))} states"
            )
        if self.bits is not None and self.states:
            raise BadRecipe("Quantize(states=...) goes without bits=...; along a trellis the price decides")
        if self.packed and (self.states or self.bits is not None):
            raise BadRecipe("Quantize(packed=True) goes without bits=... and states=...; the price decides the width")
        if self.bits is None and (self.group is not None or not self.symmetric):
            raise BadRecipe("Quantize(group=..., symmetric=...) go with bits=...; without bits the price decides")
        if self.bits is not None and not (isinstance(self.bits, int) and 2 <= self.bits <= 8):
            raise BadRecipe(f"Quantize(bits={self.bits!r}): bits is a whole number from 2 to 8")
        if self.group is not None and not (isinstance(self.group, int) and self.group >= 1):
            raise BadRecipe(f"Quantize(group={self.group!r}): group is a whole number of columns, or None for a row")

    def __repr__(self) -> str:
        given = {"bits": self.bits, "group": self.group, "symmetric": None if self.symmetric else False}
        given |= {"states": self.states or None, "packed": self.packed or None}
        return f"Quantize({', '.join(f'{name}={value}' for name, value in given.items() if value is not None)})"

    @property
    def fixed_rate(self) -> bool:
        return self.bits is not None

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        importance.check(target.shape[0], target.shape[1])
        if target.is_meta:
            raise BadInput("the target is on the meta device: it has a shape and no values; load the weights first")
        device, target, importance = str(target.device), target.cpu(), importance.cpu()
        if self.bits is not None:
            return fit_grouped(target, importance, FixedRate(self.bits, self.group or target.shape[1], self.symmetric))
        shape = (target.shape[0], target.shape[1])
        if self.packed:
            found = best_bounded(target, importance, price)
            return QuantizedPart(shape, torch.from_numpy(found.codes), found.grid, _kernel(shape, importance))
        candidate = best_candidate(target, importance, price, Choices(self.states, device))
        grid = refitted(target, importance, price, candidate)
        return QuantizedPart(shape, torch.from_numpy(candidate.codes), grid, candidate.kernel, candidate.states)


def _more_above(codes: Tensor) -> Tensor:
    """Rows whose greatest code is further from zero than the least, [rows, 1]: turned around, they may fit one bit
    less, as two's complement has one more code below zero than above."""
    if not codes.numel():
        return torch.zeros(len(codes), 1, dtype=torch.bool, device="cpu")
    own = codes.numpy()  # which is several times as fast along rows
    least, most = own.min(1, keepdims=True).astype(np.int32), own.max(1, keepdims=True).astype(np.int32)
    return torch.from_numpy(most > -least)


def _kernel(shape: tuple[int, int], importance: Importance) -> tuple[int, ...]:
    """The spatial extent behind a channel of a matrix, or ()."""
    return density_model.spatial(shape[1], importance.kernel)
