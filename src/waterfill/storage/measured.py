"""What was measured on this machine, kept between processes: small JSON files in the user's cache folder.

One file for each kind of machine, named after what describes it. What cannot be read, belongs to another machine or
cannot be written is as if it were not there: what it said is measured again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waterfill.errors import WaterfillError
from waterfill.storage.atomic import write_whole

PLACE = "WATERFILL_CACHE"
"""The environment variable that names the folder, or turns the cache off."""
_OFF = ("", "0", "off")
_FORMAT = 1
_LARGEST = 1 << 20  # bytes; such a file is none of ours


def folder() -> Path | None:
    """The folder of what is kept: that of `WATERFILL_CACHE`, else the user's cache; None where it is turned off."""
    given = os.environ.get(PLACE)
    if given is not None:
        return None if given.lower() in _OFF else Path(given)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "waterfill"
    except RuntimeError:  # a user without a home
        return None


def recall(machine: Mapping[str, str], key: str) -> Any:
    """What was kept under this key on such a machine; None where nothing was."""
    path = _path(machine)
    return None if path is None else _found(path, machine).get(key)


def remember(machine: Mapping[str, str], key: str, value: Any) -> None:
    """Keep a value, of what JSON knows, for later processes on such a machine, where that is possible."""
    path = _path(machine)
    if path is None:
        return
    with contextlib.suppress(OSError, WaterfillError):  # a cache is no reason to stop
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"format": _FORMAT, "machine": dict(machine), "found": _found(path, machine) | {key: value}}
        write_whole(path, json.dumps(kept, indent=1, sort_keys=True).encode())


def _path(machine: Mapping[str, str]) -> Path | None:
    place = folder()
    said = json.dumps(dict(machine), sort_keys=True)
    return None if place is None else place / f"measured-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


def _found(path: Path, machine: Mapping[str, str]) -> dict[str, Any]:
    """What a file holds for a machine; nothing where it is unreadable, or another's."""
    try:
        with open(path, "rb") as file:
            kept = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(kept, dict) and kept.get("format") == _FORMAT and kept.get("machine") == dict(machine)
    found = kept.get("found") if ours else None
    return found if isinstance(found, dict) else {}
