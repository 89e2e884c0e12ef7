"""Answers of engines, which others may write: read, and refused where they are none."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from waterfill.compression.engine.piece import CHECK, FIT, INSPECT, MEASURE, Item, Piece
from waterfill.compression.engine.version import fingerprint
from waterfill.errors import EngineError
from waterfill.storage.work_directory import Journal

_SHOWN = 60  # characters of an answer in an error


def read_answers(piece: Piece, text: str, engine: str) -> list[dict[str, Any]]:
    """The answer for each weight of a piece.

    engine: in words. Raises EngineError for what `answer` never says, and for what it says to another piece: of another
    recipe, price or version.
    """
    items = piece.items
    try:
        said = json.loads(text)
        other = said["piece"] != fingerprint(piece.text())
        found = said["weights"]
        fits = len(found) == len(items) and all(map(_fits(piece.do), items, found))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        fits = other = False
    if other:
        raise EngineError(
            f"{engine} gives the answer to another piece of work for that of {items[0].where.name!r}: one of another "
            "recipe, price or version, kept from before? Answer every piece anew"
        )
    if not fits:
        raise EngineError(
            f"{engine} gives {str(text)[:_SHOWN]!r} for a piece of {len(items)} weights, the first of them "
            f"{items[0].where.name!r}; what `answer` says to a piece is to come back unchanged, with the number of it"
        )
    answers: list[dict[str, Any]] = found
    return answers


def _fits(do: str) -> Callable[[Item, Mapping[str, Any]], bool]:
    """Whether an answer for an item is one to what was asked; it may raise for what is none."""

    def fits(item: Item, said: Mapping[str, Any]) -> bool:
        if "error" in said:
            return all(isinstance(said["error"][key], str) for key in ("kind", "message", "host"))
        return _RESULTS[do](item, said)

    return fits


def _is_note(note: Mapping[str, Any]) -> bool:
    return isinstance(note["words"], str) and all(note[key] >= 0 for key in ("bytes", "error", "crc"))


_RESULTS: dict[str, Callable[[Item, Mapping[str, Any]], bool]] = {
    INSPECT: lambda _, said: isinstance(said["kept"], str) and isinstance(said["reason"], str),
    MEASURE: lambda _, said: said["bits"] >= 0 and said["distortion"] >= 0,  # neither holds for NaN
    FIT: lambda item, said: said["staged"] == Journal.staged(item.i, item.at) and _is_note(said["note"]),
    CHECK: lambda _, said: isinstance(said["input"], int),
}
