"""What an engine is: it has pieces of work answered somewhere. Pieces and answers are text.

A piece names a few tensors by their file and place in it, and says what to do with them: numbers and names, no data. So
an engine needs to know nothing of compression: whatever can run `answer` on other machines that see the same files is
one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Lost:
    """In place of an answer: what became of a piece whose process died, however often it was begun. why: in words."""

    why: str


class Engine(Protocol):
    """Has pieces of work answered.

    Example:
        >>> class Processes:
        ...     slots = 4
        ...
        ...     def answers(self, pieces):
        ...         with ProcessPoolExecutor(self.slots) as pool:
        ...             yield from enumerate(pool.map(answer, pieces))
    """

    @property
    def slots(self) -> int:
        """Pieces that are worked on at a time, about."""

    def answers(self, pieces: Sequence[str]) -> Iterable[tuple[int, str | Lost]]:
        """(i, `answer` of piece i) of every piece once, in any order.

        A piece may be begun any number of times, at the same time too: each gives the same answer. One whose process
        dies again and again is `Lost`, and the others are answered all the same.
        """


def answer(piece: str) -> str:
    """Do a piece of work, and say what came of it. Errors of the work are in the answer.

    Raises EngineError for a text that is no piece.
    """
    from waterfill.compression.engine.piece import (
        answered,
    )  # torch is imported where work is done, not where it is sent

    return answered(piece)


class Serial:
    """One piece after the other, in this process: what every engine has to equal.

    Example:
        >>> waterfill.compress_file("net.safetensors", "net.wf", bits=3, engine=Serial())
    """

    slots = 1

    def answers(self, pieces: Sequence[str]) -> Iterator[tuple[int, str | Lost]]:
        """The answers in order."""
        for i, piece in enumerate(pieces):
            yield i, answer(piece)
