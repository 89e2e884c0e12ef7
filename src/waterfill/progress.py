"""How far a long piece of work is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a compression is: stage ("measuring" or "fitting"), tensors and entries done and in all."""

    stage: str
    done: int
    total: int
    entries_done: int
    entries: int
