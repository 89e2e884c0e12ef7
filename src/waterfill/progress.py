"""Progress of long computations."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The progress of a computation, passed to `Options.progress` after each unit of work.

    Attributes:
        stage: "calibrating", in units of batches; "learning", in units of steps; "measuring", "fitting" or "writing",
            in units of tensors.
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
