"""Progress of long computations, and a bar that shows it to who watches a terminal or a notebook."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PATIENCE = 2.0  # seconds before a bar appears: what is over sooner needs none
_PAUSE = 0.2  # seconds between updates
_WIDTH = 30  # characters of a bar
_KNOWN = 0.02  # the share of a stage from which a guess of the time left means something


@dataclass(frozen=True)
class Progress:
    """The progress of a computation, passed to `Options.progress` after each unit of work.

    Attributes:
        stage: "calibrating", in units of batches; "learning", in units of steps; "pruning",
            in units of rounds; "measuring", "fitting", "refitting" or
            "writing", in units of tensors.
        done: units done.
        total: units in all; in calibration as far as is known, at least `done`.
        entries_done: entries of the tensors done; in calibration the same as `done`.
        entries: entries of all tensors; in calibration the same as `total`.
        note: what else is known, such as the loss and the size of the file while a network learns; empty for nothing.

    Example:
        >>> options = Options(progress=lambda p: print(p.stage, p.done, "of", p.total))
    """

    stage: str
    done: int
    total: int
    entries_done: int
    entries: int
    note: str = ""


Report = Callable[[Progress], None]


class Bar:
    """A line on standard error that moves in place."""

    def __init__(self) -> None:
        self._stage = ""
        self._opened = self._began = self._shown = time.monotonic()
        self._length = 0

    def __call__(self, step: Progress) -> None:
        """Show a step, unless another was shown just before, or the work has only begun."""
        now = time.monotonic()
        if step.stage != self._stage:
            self._stage, self._began = step.stage, now
        if now - self._opened < _PATIENCE or now - self._shown < _PAUSE:
            return
        self._shown = now
        line = _line(step, now - self._began)
        self._write(f"\r{line.ljust(self._length)}")
        self._length = len(line)

    def close(self) -> None:
        """Leave a clean line."""
        if self._length:
            self._write("\r" + " " * self._length + "\r")

    @staticmethod
    def _write(text: str) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: the work goes on
                sys.stderr.write(text)
                sys.stderr.flush()


def _line(step: Progress, elapsed: float) -> str:
    """A step as a bar, `elapsed` seconds after its stage began."""
    share = min(1.0, step.entries_done / step.entries if step.entries else step.done / max(1, step.total))
    full = round(share * _WIDTH)
    left = round(elapsed * (1 - share) / share) if share >= _KNOWN else None
    time_left = "" if left is None else f", {left // 60}:{left % 60:02d} left"
    note = f", {step.note}" if step.note else ""
    bar = "#" * full + "." * (_WIDTH - full)
    return f"waterfill {step.stage} [{bar}] {step.done} of {step.total}{note}{time_left}"


@contextlib.contextmanager
def shown(progress: "Report | bool | None") -> Iterator[Report | None]:
    """A block whose progress goes to the function that is given.

    None: to a bar, if standard error is a terminal or this is a notebook, and else nowhere; True: to a bar; False:
    nowhere.
    """
    if callable(progress):
        yield progress
    elif progress or (progress is None and _watched()):
        bar = Bar()
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield None


def _watched() -> bool:
    """Whether somebody sees standard error move."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
