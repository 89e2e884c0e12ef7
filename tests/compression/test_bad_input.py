"""Bad input of every sort gives a clear error, at once and in little memory."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.support.networks import state
from torch import nn

import waterfill
from waterfill import WaterfillError
from waterfill.coding.stream import Writer
from waterfill.errors import BadInput, BadRecipe, BudgetError, CorruptFile, Mismatch, NewerFormat
from waterfill.model.entry import row_of
from waterfill.network.layout import MATRIX, RAW, Layout
from waterfill.storage import FileWriter
from waterfill.storage.manifest import pack

MEMORY = 200 << 20


@pytest.fixture
def refused() -> Callable:
    """Call something, expect an error of a kind that says certain words, soon and with little memory."""

    def check(kind: type[WaterfillError], told: str | None, call: Callable, *arguments: object, **named: object):
        tracemalloc.start()
        try:
            with pytest.raises(kind, match=told) as caught:
                call(*arguments, **named)
            assert type(caught.value) is kind
            assert tracemalloc.get_traced_memory()[1] < MEMORY
        finally:
            tracemalloc.stop()

    return check


@pytest.mark.parametrize("budget", [{"bits": 4}, {"price": 1e-4}, {"spec": "Quantize(bits=4)"}])
def test_weights_that_are_no_numbers_are_named(refused, budget):
    for where in ("a.weight", "b.bias", "c.weight"):
        tensors = state()
        tensors[where].view(-1)[7] = float("nan")
        told = rf"tensor '{where}' holds 1 values that are NaN"
        refused(BadInput, told, waterfill.compress, tensors, **budget)


@pytest.mark.parametrize("name", ["line\nbreak", "nul\0", "tab\t", "\x7f", "", "x" * 1025, "\ud800"])
def test_names_that_a_file_cannot_hold(refused, name):
    tensors = {**state(), name: torch.ones(3)}
    refused(BadInput, "rename", waterfill.compress, tensors, bits=4)


@pytest.mark.parametrize("name", ["a/b/../c", "ünïcode.weight", "with space", "..", "x" * 1024, "C:\\x", "'\"{}[]"])
def test_odd_names_that_are_legal(name, tmp_path):
    waterfill.compress({name: torch.ones(20, 20)}, lossless=True).save(tmp_path / "m.wf")
    assert torch.equal(waterfill.load_tensor(tmp_path / "m.wf", name), torch.ones(20, 20))


@pytest.mark.parametrize("name", ["line\nbreak", "\x7f"])
def test_names_in_a_checkpoint(refused, tmp_path, name):
    save_file({name: torch.ones(3)}, tmp_path / "m.safetensors")
    refused(BadInput, "rename", waterfill.compress_file, tmp_path / "m.safetensors", tmp_path / "m.wf", price=1e-3)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"a": 3}, "'a' is a int, not a tensor"),
        ({"a": {"b": torch.ones(3)}}, "'a' is a dict"),
        ({"a": np.ones(3)}, "'a' is a ndarray"),
        ({3: torch.ones(3)}, "3"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is sparse"),
        ({"a": torch.ones(3, device="meta")}, "'a' .* meta"),
    ],
    ids=str,
)
def test_state_dicts_that_are_none(refused, tensors, told):
    refused(BadInput, told, waterfill.compress, tensors, bits=4)


@pytest.mark.parametrize("name", ["bits", "size", "ratio", "price"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_budgets_of_nothing(refused, name, value):
    refused(BudgetError, f"{name}=.*: a budget is a positive number", waterfill.compress, state(), **{name: value})


@pytest.mark.parametrize("size", [1, 100, 300])
def test_budgets_too_small(refused, size):
    refused(BudgetError, "bytes", waterfill.compress, state(), size=size)


def test_recipes_without_meaning(refused):
    for recipe in ("", "Quantize", "Quantize(", "import os", "__import__('os')", "Quantize(bits=99)", "(" * 3000):
        refused(BadRecipe, None, waterfill.compress, state(), recipe, bits=4)


def test_a_target_class_that_does_not_match(refused):
    model = waterfill.compress(state(), price=1e-3)
    refused(Mismatch, "does not fit a Linear", model.install, nn.Linear(3, 3))


def hostile(path: Path, layouts: dict[str, Layout], blobs: dict[str, bytes], **manifest: object) -> Path:
    """A file whose container is sound, and whose manifest and blobs are whatever is given."""
    rows = [row_of(layout, "", "") for layout in layouts.values()]
    with FileWriter(path) as out:
        for name, blob in blobs.items():
            out.add(name, blob)
        out.finish({"tensors": pack(rows), "aliases": {}, "notes": {}, **manifest})
    return path


def blob(*numbers: int) -> bytes:
    """A blob of these numbers, as `Sink.uint` writes them."""
    out = Writer()
    for number in numbers:
        out.uint(number)
    return out.finish()


HUGE = [(1 << 15, 1 << 14), (1, 1 << 31), (1 << 31, 1), (1 << 20, 1 << 20), (1 << 39, 2)]


@pytest.mark.parametrize("shape", HUGE, ids=str)
@pytest.mark.parametrize("kind", range(9))
def test_shapes_of_gigabytes_in_a_tiny_file(refused, tmp_path, shape, kind):
    layout = Layout(shape, torch.float32, RAW if kind == 2 else MATRIX)
    for rest in ((), (0,) * 12, (1,) * 40, (8, 0, 0, 0, 0, 0, 0, 0), (100,) * 9):
        path = hostile(tmp_path / f"{len(rest)}-{sum(rest)}.wf", {"w": layout}, {"w": blob(kind, *rest)})
        refused(CorruptFile if kind else NewerFormat, None, waterfill.load, path)


def test_a_number_of_experts_that_is_not_there(refused, tmp_path):
    layout = Layout((1 << 38, 1, 1), torch.float32, "s")
    refused(CorruptFile, None, waterfill.load, hostile(tmp_path / "m.wf", {"w": layout}, {"w": blob(2, 0)}))


@pytest.mark.parametrize(
    "aliases", [{"b": "ghost"}, {"w": "w"}, {"b": "b"}, {"b": ["w"]}, {"b": None}, {"b": {"w": 1}}], ids=str
)
def test_aliases_that_no_writer_would_write(refused, tmp_path, aliases):
    good = waterfill.compress({"w": torch.ones(20, 20)}, price=1e-3).entries["w"]
    path = hostile(tmp_path / "m.wf", {"w": good.layout}, {"w": good.blob}, aliases=aliases)
    refused(CorruptFile, "alias", waterfill.load, path)
    refused(CorruptFile, "alias", waterfill.load_tensor, path, "w")


@pytest.mark.parametrize(
    "manifest",
    [{"notes": 3}, {"notes": []}, {"notes": None}, {"aliases": []}, {"aliases": "w"}, {"tensors": None}],
    ids=str,
)
def test_manifests_that_no_writer_would_write(refused, tmp_path, manifest):
    good = waterfill.compress({"w": torch.ones(20, 20)}, price=1e-3).entries["w"]
    path = hostile(tmp_path / "m.wf", {"w": good.layout}, {"w": good.blob}, **manifest)
    refused(CorruptFile, None, waterfill.load, path)


def test_a_part_of_another_number_type_than_its_tensor(refused, tmp_path):
    whole = waterfill.compress({"w": torch.arange(100).reshape(10, 10)}, lossless=True).entries["w"]
    for dtype in (torch.float32, torch.bool, torch.complex64):
        path = hostile(tmp_path / f"{dtype}.wf", {"w": Layout((10, 10), dtype, RAW)}, {"w": whole.blob})
        refused(CorruptFile, "int64", waterfill.load(path).state_dict)


def test_a_deflate_bomb(refused, tmp_path):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    index = packer.compress(bytes(1 << 28)) + packer.flush()
    head, length = b"\x89WF\n\x01\x00", struct.pack("<I", len(index))
    path = tmp_path / "bomb.wf"
    path.write_bytes(head + index + length + struct.pack("<I", zlib.crc32(head + index + length)))
    refused(CorruptFile, "expands", waterfill.load, path)


@pytest.mark.parametrize(
    "data", [b"", b"\x89WF\n", b"PK\x03\x04" + bytes(50), bytes(1000), b"\x89WF\n\x01\x00" + bytes(90)]
)
def test_files_of_another_kind(refused, tmp_path, data):
    (tmp_path / "m.wf").write_bytes(data)
    refused(CorruptFile, "m.wf", waterfill.load, tmp_path / "m.wf")


def test_files_of_a_newer_release_are_named(refused, tmp_path):
    waterfill.compress({"w": torch.ones(20, 20)}, price=1e-3).save(tmp_path / "m.wf")
    data = bytearray((tmp_path / "m.wf").read_bytes())
    for at, told in ((4, "format version 2"), (5, "required features 0x01")):
        newer = bytearray(data)
        newer[at] += 1
        (tmp_path / "m.wf").write_bytes(newer)
        refused(NewerFormat, told, waterfill.load, tmp_path / "m.wf")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A file of a matrix, a vector, raw integers and a tied name."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "m.wf"
    tensors = {"a": torch.randn(7, 10), "v": torch.randn(5), "i": torch.arange(4)}
    waterfill.compress({**tensors, "t": tensors["a"]}, price=0.01).save(path)
    return path.read_bytes()


def test_every_truncation_is_found(small, tmp_path):
    for length in range(len(small)):
        (tmp_path / "m.wf").write_bytes(small[:length])
        with pytest.raises(CorruptFile):
            waterfill.load(tmp_path / "m.wf")


def test_every_flipped_bit_is_found(small, tmp_path):
    for bit in range(8 * len(small)):
        flipped = bytearray(small)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "m.wf").write_bytes(flipped)
        with pytest.raises((CorruptFile, NewerFormat)):
            waterfill.load(tmp_path / "m.wf")


def test_bytes_at_the_end_or_in_between_are_found(small, tmp_path):
    for data in (small + b"\0", b"\0" + small, small[:50] + b"\0" + small[50:], small + small):
        (tmp_path / "m.wf").write_bytes(data)
        with pytest.raises(CorruptFile):
            waterfill.load(tmp_path / "m.wf")
