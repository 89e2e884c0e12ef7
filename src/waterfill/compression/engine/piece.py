"""A piece of work on a few weights, as text: what an engine carries to a machine, and what it brings back."""

import json
import socket
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waterfill.arithmetic import by_own_arithmetic
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.engine.reference import Reference, weight_of
from waterfill.compression.engine.version import check, fingerprint, here
from waterfill.compression.store import checksum, note_of
from waterfill.errors import EngineError
from waterfill.network.kept import why_kept
from waterfill.recipe import parse
from waterfill.storage.work_directory import Journal

_SHOWN = 60  # characters of a text in an error
INSPECT, MEASURE, FIT, CHECK = "inspect", "measure", "fit", "check"
"""Find out why a tensor is kept; a point of its curve; fit it; a checksum of its values."""


@dataclass(frozen=True)
class Item:
    """A weight, and what to do with it.

    i: its index. where: its place. spec: its recipe; None to keep every bit. mask: the place of its mask. kept, factor,
    lines, format: as of a `Weight`. at: k or price.
    """

    i: int
    where: Reference
    spec: str | None = None
    mask: Reference | None = None
    kept: str = ""
    factor: float = 1.0
    lines: str = ""
    format: str = ""
    at: float = 0.0

    def as_json(self) -> list[Any]:
        """A JSON array."""
        mask = self.mask and self.mask.as_json()
        rest = [self.kept, self.factor, self.lines, self.format, self.at]
        return [self.i, self.where.as_json(), self.spec, mask, *rest]

    @classmethod
    def from_json(cls, values: list[Any]) -> "Item":
        """The inverse of `as_json`."""
        i, where, spec, mask, *rest = values
        return cls(i, Reference.from_json(where), spec, Reference.from_json(mask) if mask else None, *rest)

    def weight(self) -> Weight:
        """The weight on the machine where this runs."""
        mask = None if self.mask is None else self.mask.stored()
        weight = weight_of(self.where.stored(), None if self.spec is None else parse(self.spec), self.kept, mask)
        return replace(weight, factor=self.factor, lines=self.lines, format=self.format)


@dataclass(frozen=True)
class Piece:
    """What to do with a few weights. work: the work directory, and the checksum of its plan; None where nothing is
    written."""

    do: str
    items: Sequence[Item]
    work: tuple[str, int] | None = None

    def text(self) -> str:
        """One line of JSON."""
        items = [item.as_json() for item in self.items]
        return json.dumps([here(), self.do, self.work, items])


@by_own_arithmetic
def answered(text: str) -> str:
    """The answer to the text of a piece: a JSON object with its fingerprint, and an object for each weight in order.

    Raises EngineError for a text that is no piece.
    """
    try:
        (version, code), do, work, asked = json.loads(text)
        items, folder = [Item.from_json(item) for item in asked], work if work is None else (str(work[0]), int(work[1]))
        action = _ACTIONS[do]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise EngineError(
            f"{str(text)[:_SHOWN]!r} is no piece of work ({type(error).__name__}); an engine gives `answer` the pieces "
            "that it is given, unchanged"
        ) from error

    def act(item: Item) -> dict[str, Any]:
        check(version, code)
        return action(item, folder)

    return json.dumps({"piece": fingerprint(text), "weights": [_attempt(act, item) for item in items]})


def _inspect(item: Item, _: tuple[str, int] | None) -> dict[str, Any]:
    kept = why_kept(item.where.name, item.where.stored().load())
    return {"kept": kept, "reason": replace(item, kept=kept).weight().reason}


def _measure(item: Item, _: tuple[str, int] | None) -> dict[str, Any]:
    point = item.weight().curve.at_grid(int(item.at))
    return {"bits": point.bits, "distortion": point.distortion}


def _checksum(item: Item, _: tuple[str, int] | None) -> dict[str, Any]:
    return {"input": checksum(item.where.stored().load())}


def _fit(item: Item, work: tuple[str, int] | None) -> dict[str, Any]:
    if work is None:
        raise EngineError("a piece that fits weights names no work directory; give `answer` the pieces unchanged")
    journal = _journal(*work)
    note, blob = note_of(item.weight(), item.at)
    return {"note": note | {"crc": zlib.crc32(blob)}, "staged": journal.stage(item.i, blob, item.at)}


def _journal(folder: str, plan: int) -> Journal:
    """The work directory of the job. Raises EngineError where it is not to be seen."""
    journal = Journal(Path(folder))
    if journal.plan_checksum() != plan:
        raise EngineError(
            f"the work directory {folder} of this job is not to be seen there; put it, and so the output, into a "
            "folder that every machine sees at the same place"
        )
    return journal


_ACTIONS: dict[str, Callable[[Item, tuple[str, int] | None], dict[str, Any]]] = {
    INSPECT: _inspect,
    MEASURE: _measure,
    FIT: _fit,
    CHECK: _checksum,
}


def _attempt(action: Callable[[Item], dict[str, Any]], item: Item) -> dict[str, Any]:
    """The answer for one weight: its result, or the error."""
    try:
        return action(item)
    except Exception as error:
        said: dict[str, Any] = {"kind": type(error).__name__, "message": str(error), "host": socket.gethostname()}
        if isinstance(error, OSError) and error.errno is not None:
            said |= {"number": error.errno, "file": str(error.filename or "")}
        if not isinstance(error, (EngineError, OSError)):
            said["trace"] = traceback.format_exc()
        return {"error": said}
