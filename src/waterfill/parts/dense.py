"""Dense: every entry by itself, to as many mantissa bits as it is worth, or exactly, in any number type.

Rounding to m mantissa bits keeps the exponent of float32; exponents cost what their entropy is, so a format of fewer
exponent bits would save nothing. bfloat16 is m = 7, float16 m = 10 within its range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.lossless import words
from waterfill.coding.lossless.methods import METHODS
from waterfill.coding.stream import Reader, Sink
from waterfill.dtypes import STORED, octets
from waterfill.errors import BadRecipe, NewerFormat
from waterfill.importance import Importance
from waterfill.part import Part, Spec, cost

FULL = 23
"""Mantissa bits of float32."""
_ENTRIES_SAMPLED = 1 << 20  # entries that decide on the mantissa
_PIECE = 1 << 18  # entries of which there are temporaries at a time
FORMATS = {"float32": FULL, "float16": 10, "bfloat16": 7}
"""Mantissa bits of the formats that a matrix can be rounded to."""

_FLOATS = {torch.float32: (8, 23), torch.bfloat16: (8, 7), torch.float16: (5, 10)}  # exponent and mantissa bits


def _numbers() -> tuple[tuple[str, int], ...]:
    """Every number type with every count of mantissa bits that its words can have; the place is the number in files."""
    mantissas = {str(dtype).removeprefix("torch."): m for dtype, (_, m) in _FLOATS.items()}
    return tuple((name, m) for name in STORED for m in range(mantissas.get(name, 0) + 1))


_FORMATS = _numbers()


@dataclass(frozen=True, eq=False)
class DensePart(Part):
    """Values [rows, cols] of any number type, kept to the bit. positions: kernel positions of an input channel."""

    values: Tensor
    positions: int = 1
    kind: ClassVar[int] = 2

    def dense(self) -> Tensor:
        return self.values

    @cached_property
    def _packed(self) -> words.Packed:
        return words.pack([self._unpacked], torch.get_num_threads())[0]

    @property
    def _unpacked(self) -> words.Unpacked:
        size = self.values.element_size()
        raw = octets(self.values).numpy().reshape(self.shape[0], self.shape[1] * size)
        return words.Unpacked(raw, words.Type(size, *_FLOATS.get(self.values.dtype, ())), self.positions)

    @property
    def mantissa(self) -> int:
        """Mantissa bits that some value of a matrix of floats has."""
        own = self._unpacked
        return words.fields_in_use(own.octets, own.type)[0]

    def write(self, out: Sink) -> None:
        _write(self, self._packed, out)

    @classmethod
    def write_all(cls, parts: Sequence[Self], outs: Sequence[Sink]) -> None:
        packed = words.pack([part._unpacked for part in parts], torch.get_num_threads())
        for part, one, out in zip(parts, packed, outs, strict=True):
            _write(part, one, out)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        return cls.read_all([src], [shape])[0]

    @classmethod
    def read_all(cls, sources: Sequence[Reader], shapes: Sequence[tuple[int, int]]) -> list[Self]:
        numbers, values = [], []
        for src, shape in zip(sources, shapes, strict=True):
            number, method = divmod(src.uint(len(_FORMATS) * METHODS - 1), METHODS)
            src.claim(shape[0] * shape[1])
            dtype = _dtype(_FORMATS[number][0], src)
            fields = (_FLOATS[dtype][0], _FORMATS[number][1]) if dtype in _FLOATS else ()
            kind = words.Type(dtype.itemsize, *fields)
            raw = np.empty((shape[0], shape[1] * kind.size), np.uint8)
            numbers.append(words.Unread(src, method, kind, raw))
            values.append(torch.from_numpy(raw.reshape(-1)).view(dtype).view(shape))
        positions = words.unpack(numbers, torch.get_num_threads())
        for one, made in zip(numbers, values, strict=True):
            if made.dtype == torch.bool and bool((one.octets > 1).any()):
                raise one.src.fail("a bool that is neither 0 nor 1")
        every = zip(shapes, values, positions, strict=True)
        return [cls(shape, made, count) for shape, made, count in every]

    def describe(self) -> str:
        name, own = _name(self), self._unpacked
        items = own.octets.reshape(-1, own.type.size)
        if not items.size:
            return "empty"
        if (items == items[:1]).all():
            return f"constant {self.values.reshape(-1)[0].item():.4g}"
        kept = self.mantissa if name == "float32" else FULL
        return {FULL: name, 7: "bfloat16"}.get(kept, f"{kept} mantissa bits")


def _name(part: DensePart) -> str:
    return str(part.values.dtype).removeprefix("torch.")


def _write(part: DensePart, packed: words.Packed, out: Sink) -> None:
    out.uint(_FORMATS.index((_name(part), packed.mantissa)) * METHODS + packed.method)
    out.claim(part.values.numel() + packed.entries)
    out.raw(packed.data)


def _dtype(name: str, src: Reader) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise NewerFormat(
            f"weights of type {name}: this PyTorch ({torch.__version__}) does not have it; use a newer one"
        )
    if dtype.is_complex and src.depth > 1:
        raise src.fail("complex numbers inside another part")
    return dtype


@dataclass(frozen=True)
class Dense(Spec):
    """Every entry stored by itself, rounded or bit for bit.

    Without arguments the mantissa has as many bits as are worth their price, or one value stands for all entries. A
    matrix with values that are not finite is kept exactly.

    Args:
        format: "float32", "bfloat16" or "float16": rounded to nearest; "lossless": bit for bit, in its own type.
        mantissa: rounded to so many mantissa bits, 0 to 23; excludes `format`.

    Raises:
        BadRecipe: both arguments, or values outside these.

    Example:
        >>> part = Dense(format="bfloat16").fit(weight, Importance(), price=1e-4)
    """

    format: str | None = None
    mantissa: int | None = None

    def __post_init__(self) -> None:
        if self.format is not None and self.mantissa is not None:
            raise BadRecipe("Dense: format and mantissa say the same thing; give one of them")
        if self.format not in (None, "lossless", *FORMATS):
            raise BadRecipe(f"Dense: format {self.format!r} is not one of {', '.join(FORMATS)}, lossless")
        if self.mantissa is not None and self.mantissa not in range(FULL + 1):
            raise BadRecipe(f"Dense: mantissa is 0 to {FULL} bits, not {self.mantissa!r}")

    def __repr__(self) -> str:
        given = [(name, value) for name, value in vars(self).items() if value is not None]
        return f"Dense({', '.join(f'{name}={value!r}' for name, value in given)})"

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> DensePart:
        """See `Spec.fit`; for "lossless", `target` may be of any dtype."""
        shape, positions = (target.shape[0], target.shape[1]), importance.positions
        if self.format == "lossless":
            return DensePart(shape, target.detach(), positions)
        target = target.detach().float()
        if not bool(torch.isfinite(target).all()):
            return DensePart(shape, target, positions)
        if self.format == "float16":
            target = target.clamp(-65504, 65504).half().float()
        chosen = FORMATS.get(self.format or "", self.mantissa)
        if chosen is not None:
            return DensePart(shape, rounded(target, chosen), positions)
        exact = DensePart(shape, rounded(target, _worthwhile(target, importance, price)), positions)
        flat = DensePart(shape, _center(target, importance).expand(shape).contiguous())
        return min(exact, flat, key=lambda part: cost(part, target, importance, price))


def rounded(values: Tensor, mantissa: int) -> Tensor:
    """Finite float32 values to the nearest with so many mantissa bits, ties to even, the largest towards zero."""
    if mantissa == FULL:
        return values.clone()
    drop = FULL - mantissa
    largest = 0x7F7FFFFF >> drop << drop
    made = values.clone(memory_format=torch.contiguous_format)
    for piece in made.view(torch.int32).view(-1).split(_PIECE):
        sign = piece & -0x80000000
        ties = (piece >> drop & 1).add_((1 << (drop - 1)) - 1)
        piece.bitwise_and_(0x7FFFFFFF).add_(ties)
        piece.bitwise_right_shift_(drop).bitwise_left_shift_(drop).clamp_max_(largest).bitwise_or_(sign)
    return made


def _worthwhile(target: Tensor, importance: Importance, price: float) -> int:
    """The number of mantissa bits with the lowest D + price * bits.

    Another mantissa bit is another bit of every entry. Rounding errors of different entries do not correlate, so that
    D needs only the diagonal of a Gram matrix, and a large matrix is sampled by rows. Past the first m with
    D < price * entries no further bit can pay.
    """
    step = max(1, target.numel() // _ENTRIES_SAMPLED)
    rows = importance.rows[::step] if importance.rows.ndim else importance.rows
    independent, sampled = Importance(rows, _diagonal(importance, target.shape[1])), target[::step]
    costs: list[float] = []
    for mantissa in range(FULL + 1):
        distortion = independent.distortion(sampled - rounded(sampled, mantissa))
        costs.append(distortion + price * sampled.numel() * mantissa)
        if distortion <= price * sampled.numel():
            break
    return int(np.argmin(costs))


def _center(target: Tensor, importance: Importance) -> Tensor:
    """The mean weighted by the diagonal, scalar: the best constant if errors did not correlate."""
    if not target.numel():
        return torch.zeros((), dtype=torch.float32, device="cpu")
    rows = importance.rows.double().expand(target.shape[0])
    cols = _diagonal(importance, target.shape[1]).double().expand(target.shape[1])
    total = float(rows.sum() * cols.sum())
    if total == 0:  # all weights are zero: the plain mean is as good as any
        rows, cols, total = torch.ones_like(rows), torch.ones_like(cols), float(target.numel())
    step = max(1, _PIECE // target.shape[1])
    sums = torch.cat([some.double() @ cols for some in target.split(step)])
    return ((rows * sums).sum() / total).float()


def _diagonal(importance: Importance, cols: int) -> Tensor:
    if importance.gram is None:
        return importance.diagonal
    diagonal = importance.gram.diagonal()
    return diagonal.repeat(cols // len(diagonal))
