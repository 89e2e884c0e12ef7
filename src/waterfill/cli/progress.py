"""Progress with the time left, on standard error: one line that moves on a terminal, now and then a line elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from waterfill.report.text import seconds_text, show

if TYPE_CHECKING:
    from waterfill import Progress

_MOVES, _LINES = 0.1, 15.0  # seconds between updates on a terminal, and elsewhere
_KNOWN = 0.01  # the share of the work from which a guess of the time left means something


class Meter:
    """Shows each step it is called with. Use it in a `with` block, which leaves the terminal's line clean."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._moving = sys.stderr is not None and sys.stderr.isatty()
        self._stage = ""
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self._moving and not self._quiet:
            show("reading and measuring ...")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._clear()

    def __call__(self, step: "Progress") -> None:
        """Show a step, unless another was shown just before."""
        now = time.monotonic()
        if step.stage != self._stage:
            self._stage, self._began = step.stage, now
        if self._quiet or now - self._shown < (_MOVES if self._moving else _LINES):
            return
        self._shown = now
        line = line_of(step, now - self._began)
        show(f"\r\x1b[K{line}" if self._moving else f"{line}\n")

    def _clear(self) -> None:
        if self._moving and not self._quiet:
            show("\r\x1b[K")


def line_of(step: "Progress", elapsed: float) -> str:
    """A step in words, `elapsed` seconds after its stage began."""
    share = step.entries_done / step.entries if step.entries else step.done / max(1, step.total)
    what = {"calibrating": "batches", "learning": "steps", "pruning": "rounds"}.get(step.stage, "tensors")
    note = f", {step.note}" if step.note else ""
    line = f"{step.stage}: {step.done} of {step.total} {what}, {100 * share:.0f} %{note}"
    return f"{line}, {seconds_text(elapsed * (1 - share) / share)} left" if share >= _KNOWN else line
