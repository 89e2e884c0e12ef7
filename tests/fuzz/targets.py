"""What is fuzzed: reading a file of any bytes. Whatever they are, the answer is a model or one of two errors."""

import contextlib
import tempfile
from pathlib import Path

import torch

import waterfill
from waterfill.errors import CorruptFile, NewerFormat
from waterfill.model.entry import Entry, decode
from waterfill.network.layout import KERNEL, MATRIX, RAW, STACK, VECTOR, Layout

RECIPES = (
    *("Quantize()", "Quantize(bits=3, group=4)", "Codebook(levels=4)", "Prune(keep=0.3)", "LowRank(rank=1)"),
    *("Sampled()", "Dense()", 'Dense(format="lossless")', "Codebook(levels=2) + Prune(keep=0.1)"),
)
LAYOUTS = (
    Layout((6, 10), torch.float32, MATRIX),
    Layout((4, 2, 3, 3), torch.float32, KERNEL),
    Layout((1, 7), torch.float16, VECTOR),
    Layout((3, 5, 4), torch.bfloat16, STACK),
    Layout((5, 3), torch.int64, RAW),
    Layout((1, 1), torch.float32, MATRIX),
    Layout((300, 200), torch.float32, MATRIX),
    Layout((1 << 15, 1 << 14), torch.float32, MATRIX),
)


def read_file(data: bytes) -> None:
    """These bytes as a whole file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.wf"
        path.write_bytes(data)
        with contextlib.suppress(CorruptFile, NewerFormat):
            waterfill.load(path).state_dict()


def read_blob(data: bytes) -> None:
    """These bytes as the blob of one tensor, past all checksums; the first byte says in what layout."""
    layout = LAYOUTS[data[0] % len(LAYOUTS)] if data else LAYOUTS[0]
    with contextlib.suppress(CorruptFile, NewerFormat):
        Entry("w", layout, decode(data[1:], layout, "w"), data[1:]).tensor()


def seeds() -> dict[str, bytes]:
    """Inputs to begin from: a small file, and the blobs of every kind of part in every small layout."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for recipe in RECIPES:
        for number, layout in enumerate(LAYOUTS[:4]):
            matrix = torch.randn(layout.matrix, generator=generator)
            part = waterfill.parse(recipe).fit(matrix, waterfill.Importance(kernel=layout.kernel), 1e-2)
            found[f"blob {recipe} {number}"] = bytes([number]) + part.encode() * layout.count
    with tempfile.TemporaryDirectory() as folder:
        model = waterfill.compress({"a": torch.randn(7, 10, generator=generator), "i": torch.arange(4)}, price=1e-2)
        model.save(Path(folder) / "m.wf")
        found["file"] = (Path(folder) / "m.wf").read_bytes()
    return found
