"""Numbers for reading."""

import math

from waterfill.report.text import bytes_text, count_text


def small(value: float | None, digits: int = 3) -> str:
    """A number of any size, such as 0.0123 or 3.2e-07; empty for none."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    if 1e-3 <= abs(value) < 1e5:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{places}f}"
    return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")


def percent(share: float | None, digits: int = 2) -> str:
    """A share as a percentage; empty for none."""
    return "" if share is None else f"{100 * share:.{digits}f} %" if share else "0"


def quality_text(value: float, points: bool) -> str:
    """A measure of quality: a share as a percentage."""
    return f"{100 * value:.2f} %" if points else small(value, 4)


__all__ = ["bytes_text", "count_text", "percent", "quality_text", "small"]
