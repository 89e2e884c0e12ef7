"""A network in compressed form: names to parts, to and from a file, and back into a module of the user's own class."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from waterfill.model.entry import Entry, row_of
from waterfill.model.install import install
from waterfill.model.lazy import CompressedTensors
from waterfill.network.layout import Layout
from waterfill.storage import FileReader, FileWriter, size_of
from waterfill.storage.manifest import Manifest
from waterfill.storage.remarks import warning_in

_UNCOUNTED = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """Names to parts. aliases: tied names and the one that holds the parts. notes: how it was made."""

    entries: dict[str, Entry]
    aliases: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        recipe = f", recipe {self.notes['recipe']!r}" if "recipe" in self.notes else ""
        return f"CompressedModel({len(self.entries)} tensors, {self.weights} weights{recipe})"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the file says beside the blobs."""
        rows = [row_of(e.layout, e.words, e.reason) for e in self.entries.values()]
        return Manifest(rows, self.aliases, self.notes).pack()

    @cached_property
    def size(self) -> int:
        """Exact bytes of the file."""
        return size_of(self.manifest, {name: len(entry.blob) for name, entry in self.entries.items()})

    def overhead(self, lengths: Sequence[int]) -> int:
        """Bytes of the file beside the blobs, were these their lengths."""
        return size_of(self.manifest, dict(zip(self.entries, lengths, strict=True))) - sum(lengths)

    @property
    def weights(self) -> int:
        """Entries that count as weights: all floating-point ones but a norm's running statistics."""
        return count_weights((e.name, e.layout) for e in self.entries.values())

    @property
    def bits(self) -> float:
        """Bits of the whole file per weight."""
        return 8 * self.size / max(1, self.weights)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, tied names included, in their own shapes and dtypes."""
        tensors = {name: entry.tensor() for name, entry in self.entries.items()}
        return tensors | {alias: tensors[name] for alias, name in self.aliases.items()}

    def install(self, module: nn.Module) -> nn.Module:
        """Put the weights into a module of the user's own class, on the meta device too; see `waterfill.model.install`.

        Raises Mismatch unless names and shapes agree and the module's types can hold the values.
        """
        return install(module, self.state_dict())

    def table(self) -> list[dict[str, Any]]:
        """One row a tensor: name, shape, dtype, part, bytes, bits per entry, relative error, reason, warning."""
        told = self.warnings
        return [
            table_row(e.name, e.layout, (e.words, e.reason), len(e.blob), e.error) | {"warning": told.get(e.name, "")}
            for e in self.entries.values()
        ]

    @property
    def warnings(self) -> dict[str, str]:
        """By name, what a user should know of how a tensor was compressed: that no input reached it, say; by "", of the
        network as a whole."""
        told, whole = self.notes.get("warnings"), warning_in(self.notes)
        by_name = {name: f"{text}" for name, text in told.items()} if isinstance(told, Mapping) else {}
        return by_name | ({"": whole} if whole else {})

    def save(self, path: "str | Path", *, force: bool = False) -> int:
        """Write the file; returns its size in bytes. Raises OutputExists unless `force`."""
        with FileWriter(path, force=force) as out:
            for name, entry in self.entries.items():
                out.add(name, entry.blob)
            return out.finish(self.manifest)

    @classmethod
    def load(cls, path: "str | Path") -> "CompressedModel":
        """Read a file, every checksum proved. Raises CorruptFile, NewerFormat."""
        with FileReader(path) as src:
            tensors = CompressedTensors(src)
            entries = {name: tensors.entry(name) for name in src.names}
            return cls(entries, dict(tensors.aliases), dict(tensors.manifest.notes))


def table_row(name: str, layout: Layout, said: tuple[str, str], size: int, error: float | None) -> dict[str, Any]:
    """A row of `CompressedModel.table`; `said`: what the tensor became, and why it stayed as it was."""
    return {
        "name": name,
        "shape": list(layout.shape),
        "dtype": str(layout.dtype).removeprefix("torch."),
        "part": said[0],
        "bytes": size,
        "bits": 8 * size / max(1, layout.entries),
        "error": error,
        "reason": said[1],
        "warning": "",
    }


def count_weights(tensors: Iterable[tuple[str, Layout]]) -> int:
    """Real numbers, two for a complex one, of (name, layout) pairs, running statistics of norms not counted."""
    counted = (layout for name, layout in tensors if not name.endswith(_UNCOUNTED))
    return sum(layout.numbers for layout in counted if layout.dtype.is_floating_point or layout.dtype.is_complex)


def load(path: "str | Path") -> CompressedModel:
    """Read a file, every checksum proved.

    Raises:
        CorruptFile: for damage, saying where.
        NewerFormat: for what a newer release wrote.

    Example:
        >>> net = waterfill.load("net.wf").install(Net())
    """
    return CompressedModel.load(path)
