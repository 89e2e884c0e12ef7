"""How far a long piece of work is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is, as of now.

    stage: "calibrating" (done and total count batches), "measuring" or "fitting" (tensors), "writing". done, total:
    in the unit of the stage. entries_done, entries: of the tensors; in calibration the same as done and total.
    """

    stage: str
    done: int
    total: int
    entries_done: int
    entries: int
