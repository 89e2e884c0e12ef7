"""The tensors of a file, one at a time: the primitive that every way of reading a file is made of."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from waterfill.errors import CorruptFile
from waterfill.model.entry import Entry, decode, decode_all, layout_in
from waterfill.network.layout import Layout
from waterfill.storage import FileReader
from waterfill.storage.manifest import Manifest


class CompressedTensors(Mapping[str, Tensor]):
    """The tensors of an open .wf file by name, tied ones included; each is decoded on access.

    Raises CorruptFile, NewerFormat: at once for the manifest, and for a blob when it is read.
    """

    def __init__(self, src: FileReader) -> None:
        self._src = src
        self.manifest = Manifest.unpack(src.manifest, src.names)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Tied names, and the one that holds the data."""
        return self.manifest.aliases

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """How each tensor is laid out, by name in file order, tied names excluded."""
        return {name: layout_in(row) for name, row in zip(self._src.names, self.manifest.rows, strict=True)}

    @property
    def metadata(self) -> dict[str, str]:
        """The texts that the header of the original `.safetensors` file held. Raises CorruptFile."""
        texts = self.manifest.notes.get("metadata", {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise CorruptFile("the manifest's metadata are not what a writer would have written; the file is damaged")
        return texts

    def entry(self, name: str) -> Entry:
        """One tensor as parts; for a tied name, that of the name that holds the data."""
        own = self.aliases.get(name, name)
        blob = self._src.blob(own)
        return Entry(own, self.layouts[own], decode(blob, self.layouts[own], own), blob, self._reasons[own])

    def entries(self) -> dict[str, Entry]:
        """All tensors as parts, by name in file order, tied names excluded."""
        blobs = dict(self._src.blobs())
        parts = decode_all(list(blobs.values()), list(self.layouts.values()), list(blobs))
        return {
            name: Entry(name, layout, found, blobs[name], self._reasons[name])
            for (name, layout), found in zip(self.layouts.items(), parts, strict=True)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.entry(name).tensor()

    def __iter__(self) -> Iterator[str]:
        yield from self._src.names
        yield from self.aliases

    def __len__(self) -> int:
        return len(self._src.names) + len(self.aliases)

    @cached_property
    def _reasons(self) -> dict[str, str]:
        return {name: row.reason for name, row in zip(self._src.names, self.manifest.rows, strict=True)}


def load_tensor(path: "str | Path", name: str) -> Tensor:
    """One tensor of a file; the others are not read.

    Args:
        path: a `.wf` file.
        name: of the tensor; tied names too.

    Returns:
        The tensor in its own shape and dtype.

    Raises:
        BadInput: a name that the file does not hold, or a path that is a pipe or a device.
        CorruptFile: damage in what is read.
        NewerFormat: a file of a newer release.
        OSError: a file that is not there or cannot be read.

    Example:
        >>> weight = waterfill.load_tensor("net.wf", "conv.weight")
    """
    with FileReader(path) as src:
        return CompressedTensors(src)[name]
