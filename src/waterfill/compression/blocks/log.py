"""How far the second pass is, so that one that was killed goes on at the block where it was, to the same file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waterfill.compression.blocks.pace import Pace
from waterfill.compression.store import KeepingStore
from waterfill.storage.atomic import write_whole

_FILE = "fitted.json"


@dataclass(eq=False)
class Log:
    """folder: where it is written; None for nowhere. done: blocks that are finished; -1 before the first hidden states.
    aim: bytes that the pass aims at. spent: number, price and bits of each weight, in order. pace: its
    common exponent, expected bits and scaled curves."""

    folder: Path | None
    aim: float
    done: int = -1
    spent: list[list[Any]] = field(default_factory=list)
    pace: list[Any] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path | None, aim: float) -> "Log":
        """What an earlier run left in a folder, or a new one."""
        try:
            known = json.loads((folder / _FILE).read_bytes()) if folder is not None else None
        except (FileNotFoundError, ValueError):
            known = None
        return cls(folder, aim) if known is None else cls(folder, **known)

    def replay(self, pace: Pace) -> None:
        """Let a pace know what was spent."""
        if self.pace:
            pace.spent = {int(i): float(bits) for i, _, bits in self.spent}
            common, expected, scaled = self.pace
            for i, share in scaled:
                pace.scale(int(i), share)
            pace.common, pace.expected = common, expected

    def commit(self, done: int, pace: Pace, store: KeepingStore) -> None:
        """Note that so many blocks are finished; their hidden states are kept already."""
        self.done = done
        self.spent = [[i, store.price(i), bits] for i, bits in pace.spent.items()]
        self.pace = [pace.common, pace.expected, list(pace.scaled)]
        if self.folder is not None:
            text = json.dumps({"aim": self.aim, "done": done, "spent": self.spent, "pace": self.pace})
            write_whole(self.folder / _FILE, text.encode())

    def begin_again(self, aim: float) -> None:
        """Start over, to a file of another size."""
        self.aim, self.done, self.spent, self.pace = aim, -1, [], []
        if self.folder is not None:
            (self.folder / _FILE).unlink(missing_ok=True)
