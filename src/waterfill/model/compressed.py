"""A network in compressed form: names to parts, to and from a file, and back into a module of the user's own class."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from waterfill.model.entry import Entry, row_of
from waterfill.model.install import install, make_room
from waterfill.model.lazy import CompressedTensors
from waterfill.model.notebook import shown
from waterfill.network.layout import Layout
from waterfill.network.running.wrapped import holder
from waterfill.storage import FileReader, FileWriter, size_of
from waterfill.storage.manifest import Manifest
from waterfill.storage.remarks import warning_in

_UNCOUNTED = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A network in compressed form: what `compress` and `load` return.

    Attributes:
        entries: the tensors as parts, by name, in file order.
        aliases: tied names, each with the name that holds the parts.
        notes: how it was made: recipe, bytes of the original tensors, remarks, metadata.

    Example:
        >>> small = waterfill.compress(model, bits=4)
        >>> print(small.size, small.bits, small.warnings)
        >>> small.install(Net())
    """

    entries: dict[str, Entry]
    aliases: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        recipe = f", recipe {self.notes['recipe']!r}" if "recipe" in self.notes else ""
        return f"CompressedModel({len(self.entries)} tensors, {self.weights} weights{recipe})"

    def _repr_html_(self) -> str:
        """Totals and the largest tensors, for a notebook."""
        original = self.notes.get("original")
        ratio = f", {original / self.size:.1f} times smaller" if type(original) is int else ""
        summary = f"{self.size:,} bytes{ratio}, {self.bits:.3f} bits per weight, {self.weights:,} weights"
        return shown(summary, self.table(), [f"{name}: {text}".lstrip(": ") for name, text in self.warnings.items()])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the file: shapes, dtypes, aliases and notes."""
        rows = [row_of(e.layout, e.words, e.reason) for e in self.entries.values()]
        return Manifest(rows, self.aliases, self.notes).pack()

    @cached_property
    def size(self) -> int:
        """Exact bytes of the file."""
        return size_of(self.manifest, {name: len(entry.blob) for name, entry in self.entries.items()})

    def overhead(self, lengths: Sequence[int]) -> int:
        """Bytes of the file beside the blobs, for blobs of these lengths in bytes, in file order."""
        return size_of(self.manifest, dict(zip(self.entries, lengths, strict=True))) - sum(lengths)

    @property
    def weights(self) -> int:
        """Number of weights: floating-point entries, complex ones twice, without running statistics of norms."""
        return count_weights((e.name, e.layout) for e in self.entries.values())

    @property
    def bits(self) -> float:
        """Bits of the whole file per weight."""
        return 8 * self.size / max(1, self.weights)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors decoded, tied names included, in their own shapes and dtypes."""
        tensors = {name: entry.tensor() for name, entry in self.entries.items()}
        return tensors | {alias: tensors[name] for alias, name in self.aliases.items()}

    def install(self, module: nn.Module) -> nn.Module:
        """Load the weights into a module of the user's own class.

        Where norms of batches were folded into layers it is put into evaluation mode: in training mode they would
        measure each batch anew, and the network would no longer be the same.

        Args:
            module: changed in place; parameters on the meta device get memory on the CPU. Where channels were pruned
                before the network was compressed, they are taken out of it.

        Returns:
            The module.

        Raises:
            Mismatch: names or shapes that differ, or values that the module's types cannot hold.
        """
        tensors, network = self.state_dict(), holder(module, self.entries)
        make_room(network, self.notes, {name: tuple(value.shape) for name, value in tensors.items()})
        install(network, tensors)
        return module.eval() if self.notes.get("folded") else module

    def table(self) -> list[dict[str, Any]]:
        """A row for each tensor, a dict: name, shape, dtype, part, bytes, bits, error, reason, warning.

        bits: per entry. error: norm of the error relative to that of the tensor, None for a loaded file. reason: why
        the recipe was not applied.
        """
        warnings = self.warnings
        return [
            table_row(e.name, e.layout, (e.words, e.reason), len(e.blob), e.error)
            | {"warning": warnings.get(e.name, "")}
            for e in self.entries.values()
        ]

    @property
    def warnings(self) -> dict[str, str]:
        """Warnings by the name of the tensor, such as that no input reached it; by "", of the network as a whole."""
        noted, whole = self.notes.get("warnings"), warning_in(self.notes)
        by_name = {name: f"{text}" for name, text in noted.items()} if isinstance(noted, Mapping) else {}
        return by_name | ({"": whole} if whole else {})

    def save(self, path: "str | Path", *, force: bool = False) -> int:
        """Write the file, at once and whole or not at all.

        Args:
            path: of the file, usually `.wf`.
            force: whether an existing file may be replaced.

        Returns:
            Its size in bytes, the same as `size`.

        Raises:
            OutputExists: the path is taken and `force` is not set, or another process writes it.
            BadInput: the folder does not exist.
            OSError: what the system reports, such as a full disk.
        """
        with FileWriter(path, force=force) as out:
            for name, entry in self.entries.items():
                out.add(name, entry.blob)
            return out.finish(self.manifest)

    @classmethod
    def load(cls, path: "str | Path") -> "CompressedModel":
        """Read a file; see `waterfill.load`."""
        with FileReader(path) as src:
            tensors = CompressedTensors(src)
            return cls(tensors.entries(), dict(tensors.aliases), dict(tensors.manifest.notes))


def table_row(name: str, layout: Layout, described: tuple[str, str], size: int, error: float | None) -> dict[str, Any]:
    """A row of `CompressedModel.table`; `described`: the words for its parts, and why the recipe was not applied."""
    return {
        "name": name,
        "shape": list(layout.shape),
        "dtype": str(layout.dtype).removeprefix("torch."),
        "part": described[0],
        "bytes": size,
        "bits": 8 * size / max(1, layout.entries),
        "error": error,
        "reason": described[1],
        "warning": "",
    }


def count_weights(tensors: Iterable[tuple[str, Layout]]) -> int:
    """Real numbers, two for a complex one, of (name, layout) pairs, running statistics of norms not counted."""
    counted = (layout for name, layout in tensors if not name.endswith(_UNCOUNTED))
    return sum(layout.numbers for layout in counted if layout.dtype.is_floating_point or layout.dtype.is_complex)


def load(path: "str | Path") -> CompressedModel:
    """Read a file and verify every checksum.

    Args:
        path: a `.wf` file.

    Returns:
        The network, every tensor as parts.

    Raises:
        CorruptFile: damage, with its place.
        NewerFormat: a file of a newer release.
        BadInput: a path that is a pipe or a device.
        OSError: a file that is not there or cannot be read.

    Example:
        >>> net = waterfill.load("net.wf").install(Net())
    """
    return CompressedModel.load(path)
