"""Axes: where ticks stand, what is written at them, and where a value lies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_SMALLEST = 1e-300


@dataclass(frozen=True)
class Axis:
    """From low to high, drawn from `start` to `end` in units of the picture."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, logarithmic: bool = False) -> "Axis":
        """An axis that reaches a little beyond the values; whole decades where it is logarithmic."""
        known = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)]
        low, high = (min(known), max(known)) if known else (0.1, 1.0)
        if logarithmic:
            low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
            return cls(low, high if high > low else 10 * low, start, end, True)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - margin if low else 0.0, high + margin, start, end)

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, _SMALLEST))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Values and what is written at them, at most about so many."""
        if self.logarithmic:
            lowest, highest = round(math.log10(self.low)), round(math.log10(self.high))
            powers = range(lowest, highest + 1, max(1, math.ceil((highest - lowest + 1) / most)))
            return [(10.0**power, power_text(power)) for power in powers]
        raw = (self.high - self.low) / max(1, most)
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * step for step in _STEPS if unit * step >= raw * 0.999)
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        first = math.ceil(self.low / step - 1e-9)
        return [((first + i) * step, f"{(first + i) * step:.6g}") for i in range(count)]


def power_text(power: int) -> str:
    """A power of ten for reading."""
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if not -2 <= power <= 3 else f"{10.0**power:g}"
