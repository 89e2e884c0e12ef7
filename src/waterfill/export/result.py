"""What an export made: a row for each tensor, and the bytes on disk."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """A tensor of an export. form: how it is held there. bytes: in the file. why: what keeps it from a smaller form.

    loss: norm of the difference that exporting made, relative to that of the compressed tensor; 0 where there is none.
    """

    name: str
    form: str
    bytes: int
    why: str = ""
    loss: float = 0.0


@dataclass(frozen=True)
class Exported:
    """An export. path: the file or the folder. size: bytes of all its files that hold weights.

    difference: norm of the difference of the outputs in the runtime of the format from those in PyTorch, relative to
    theirs, for the first batch; None where the runtime is not installed or no batch was given.
    """

    path: Path
    format: str
    size: int
    rows: list[Row]
    difference: float | None = None

    @property
    def loss(self) -> float:
        """The largest loss of a tensor."""
        return max((row.loss for row in self.rows), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        said = {"output": str(self.path), "format": self.format, "bytes": self.size, "difference": self.difference}
        return said | {"tensors": [asdict(row) for row in self.rows]}
