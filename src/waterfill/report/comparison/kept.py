"""Rows of a long measurement in a JSON file, written anew after each, so that the same command goes on where it was."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waterfill.errors import BadInput, PlanMismatch
from waterfill.report.page.facts import finite
from waterfill.storage.atomic import claimed, write_whole
from waterfill.storage.paths import check_target

_FORMAT = "waterfill"


@dataclass(eq=False)
class Kept:
    """Rows by their key. kind: what the file holds. about: what identifies the measurement. path: None for no file."""

    kind: str
    about: Mapping[str, Any]
    path: Path | None
    more: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def at(cls, path: "str | Path | None", kind: str, about: Mapping[str, Any]) -> Iterator["Kept"]:
        """The rows of a file, or none, in a block in which no other process adds to them.

        Raises OutputExists where one does, BadInput for a file that is no such thing, PlanMismatch for one of another
        measurement.
        """
        if path is None:
            yield cls(kind, about, None)
            return
        target = check_target(path, True)
        with claimed(target):
            kept = cls(kind, json.loads(json.dumps(about)), target)
            if target.exists():
                kept._go_on(read(target, kind))
            yield kept

    def _go_on(self, known: Mapping[str, Any]) -> None:
        for key, value in self.about.items():
            if known["about"].get(key) != value:
                was = known["about"].get(key)
                raise PlanMismatch(
                    f"{self.path} is of another measurement: its {key} is {was!r}, now it is {value!r}. Name another "
                    "file, or delete this one to begin anew"
                )
        self.rows, self.more = dict(known["rows"]), dict(known["more"])

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row, and bring it to disk."""
        self.rows[key] = finite(dict(row))
        self.write()

    def write(self) -> None:
        """Bring all to disk."""
        if self.path is not None:
            held = {_FORMAT: self.kind, "about": self.about, "more": self.more, "rows": self.rows}
            write_whole(self.path, json.dumps(finite(held), indent=1, allow_nan=False).encode())


def read(path: "str | Path", kind: str) -> dict[str, Any]:
    """What such a file holds. Raises BadInput for anything else."""
    try:
        known = json.loads(Path(path).read_text("utf-8"))
        right = known[_FORMAT] == kind and all(isinstance(known[key], dict) for key in ("about", "more", "rows"))
        right = right and all(isinstance(row, dict) for row in known["rows"].values())
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        raise BadInput(f"{path} is no JSON of `waterfill {kind}`; name another file")
    return dict(known)
