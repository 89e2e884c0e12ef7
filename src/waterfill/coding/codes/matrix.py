"""A matrix of codes as bytes: the shortest of a few ways to write it.

The first number is the method: all equal; the product-scale density model, alone or along a trellis; a histogram; plain
bits; or which rows repeat earlier ones, and then the distinct rows in one of the other ways. `docs/format.md` has it to
the bit.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from waterfill.coding import rans, rice
from waterfill.coding.chunking import narrow
from waterfill.coding.codes.modeled import Modeled
from waterfill.coding.codes.plain import Constant, Histogram, Packed
from waterfill.coding.codes.plan import Frame, Frequencies, Plan
from waterfill.coding.codes.trellised import Trellised
from waterfill.coding.model.density_model import spatial
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadInput

__all__ = ["Plan", "narrow", "plan", "read", "spatial"]

_LARGE = 1 << 21  # beyond this many codes the histogram is tried only where the density model does poorly


def plan(codes: np.ndarray, kernel: tuple[int, ...] = (), states: int = 0) -> Plan:
    """The shortest way to write integer codes [rows, cols], columns = channels * prod(kernel).

    With `states` they run along the trellis of so many, and are written so unless all are equal; ValueError if they
    leave it.
    """
    codes = narrow(np.asarray(codes))
    if codes.ndim != 2:
        raise BadInput(f"codes form a matrix [rows, cols]; found {codes.ndim} dimensions")
    if not codes.size or codes.min() == codes.max():
        return Constant(codes, 24.0, 1)
    if states:
        return Trellised.along(codes, spatial(codes.shape[1], kernel), states)
    whole = _distinct_rows(codes)
    if whole is None:
        return _shortest(codes, kernel)
    first, which = whole
    inner = plan(codes[first], kernel)
    repeated = Repeated(codes, inner.bits + 24 + _pointer_bits(which), 1, inner, which)
    return min(repeated, _shortest(codes, kernel), key=lambda p: p.bits)


def read(src: Reader, rows: int, cols: int, kernel: tuple[int, ...] = ()) -> np.ndarray:
    """Codes [rows, cols] that the plan of `plan` wrote, of the smallest of int8, int16 and int32 that holds them.

    Raises CorruptFile.
    """
    if rows < 0 or cols < 0:
        raise src.fail(f"a matrix of {rows} rows and {cols} columns")
    src.claim(rows * cols)
    mode, lanes = _read_mode(src)
    if rows * cols == 0 and mode is not Constant:
        raise src.fail("codes of an empty matrix")
    return mode.read(src, Frame(rows, cols, spatial(cols, kernel), lanes))


def _read_mode(src: Reader) -> tuple[type[Plan], int]:
    number = src.uint(127)
    mode, lanes = number & 7, 1 << (number >> 3)
    if mode >= len(_MODES) or lanes > rans.MAX_LANES:
        raise src.fail(f"codes written in mode {mode} with {lanes} lanes")
    return _MODES[mode], lanes


def _shortest(codes: np.ndarray, kernel: tuple[int, ...]) -> Plan:
    plans: list[Plan] = [Modeled.plan(codes, spatial(codes.shape[1], kernel)), Packed.plan(codes)]
    span = int(codes.max()) - int(codes.min())
    if span < 255 and (codes.size < _LARGE or plans[0].bits > 0.98 * plans[1].bits):
        plans.append(Histogram.plan(codes))
    return min(plans, key=lambda p: p.bits)


@dataclass(frozen=True, eq=False)
class Repeated(Plan):
    """Which of its distinct rows each row is: inner holds them [distinct, cols], which [rows] names one for each."""

    inner: Plan
    which: np.ndarray
    mode: ClassVar[int] = 4

    def expect(self, rows: slice, into: Frequencies) -> None:
        inner = self.inner.frequencies()
        if inner is not None:
            codes = inner.low + np.arange(len(inner.expected))
            into.add(codes, inner.expected * (into.found.sum() / inner.found.sum()))

    def content(self, out: Sink) -> None:
        out.uint(len(self.inner.codes))
        out.ints(_steps_back(self.which))
        out.claim(self.inner.entries)
        self.inner.write(out)

    @staticmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        distinct = src.uint(frame.rows)
        steps = src.ints(frame.rows)
        which = np.where(steps == 0, np.cumsum(steps == 0), steps) - 1
        if steps.min() < 0 or which.max() >= distinct:
            raise src.fail("a row repeats a row that is not there")
        src.claim(distinct * frame.cols)
        mode, lanes = _read_mode(src)
        if mode is Repeated:
            raise src.fail("repeated rows inside repeated rows")
        return mode.read(src, replace(frame, rows=distinct, lanes=lanes))[which]


_MODES: tuple[type[Plan], ...] = (Constant, Modeled, Histogram, Packed, Repeated, Trellised)


def _distinct_rows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where each distinct row first is, and which of these every row is; None if fewer than one in twenty repeats."""
    rows, cols = codes.shape
    if rows < 8 or cols < 8:
        return None
    for columns in (codes[:, :64], codes) if cols > 64 else (codes,):
        records = np.ascontiguousarray(columns)
        records = records.view(np.dtype((np.void, records.shape[1] * records.itemsize))).ravel()
        _, first, which = np.unique(records, return_index=True, return_inverse=True)
        if len(first) > 0.95 * rows:
            return None
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[which.ravel()]


def _steps_back(which: np.ndarray) -> np.ndarray:
    """For every row: 0 if it is the next new one, else 1 + which of the rows known so far it repeats."""
    known = np.maximum.accumulate(np.concatenate([[-1], which]))
    return np.where(which > known[:-1], 0, which + 1)


def _pointer_bits(which: np.ndarray) -> float:
    steps = _steps_back(which)
    folded = rice.zigzag(steps - rice.center_of(steps))
    return float(rice.rice_bits(folded, rice.best_parameter(folded)))
