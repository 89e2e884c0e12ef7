"""Reading checkpoints: single files, shards, folders, ties; and every way in which one can be broken."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.networks import same, state

from waterfill.errors import BadInput, CorruptFile
from waterfill.network.checkpoint import open_checkpoint

INDEX = "model.safetensors.index.json"


def sharded(folder: Path, index: dict | None = None) -> Path:
    """`state()` in two shards and an index, whose weight map may be given."""
    names = sorted(state())
    shards = {"one.safetensors": names[:3], "two.safetensors": names[3:]}
    for file, held in shards.items():
        save_file({name: state()[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held} if index is None else index
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / INDEX


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_single_file(tmp_path):
    save_file(state(), tmp_path / "m.safetensors")
    for source in (tmp_path / "m.safetensors", str(tmp_path / "m.safetensors"), tmp_path):
        checkpoint = open_checkpoint(source)
        assert {name: (s.shape, s.dtype) for name, s in checkpoint.tensors.items()} == {
            name: (tuple(t.shape), t.dtype) for name, t in state().items()
        }
        assert all(same(stored.load(), state()[name]) for name, stored in checkpoint.tensors.items())
        assert checkpoint.original_bytes == sum(t.numel() * t.element_size() for t in state().values())


def test_shards_by_index_and_by_folder(tmp_path):
    index = sharded(tmp_path)
    for source in (index, tmp_path):
        checkpoint = open_checkpoint(source)
        assert sorted(checkpoint.tensors) == sorted(state())
        assert [file.name for file in checkpoint.files] == ["one.safetensors", "two.safetensors"]
        assert all(same(stored.load(), state()[name]) for name, stored in checkpoint.tensors.items())


def test_every_number_type(tmp_path):
    dtypes = (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
        *(torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2),
    )
    tensors = {str(dtype): torch.ones(3, 4).to(dtype) for dtype in dtypes}
    save_file(tensors, tmp_path / "m.safetensors")
    found = open_checkpoint(tmp_path).tensors
    assert {name: stored.dtype for name, stored in found.items()} == {str(dtype): dtype for dtype in dtypes}


def test_equal_matrices_are_tied_and_equal_vectors_are_not(tmp_path):
    a, b = torch.randn(300, 300), torch.randn(300, 300)
    late = a.clone()
    late[-1, -1] += 1  # beyond what is compared first
    tensors = {"a": a, "b": b, "c": a.clone(), "d": late, "x": torch.ones(9), "y": torch.ones(9), "h": a.half()}
    save_file(tensors, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.aliases == {"c": "a"}
    assert sorted(checkpoint.tensors) == ["a", "b", "d", "h", "x", "y"]


def test_what_is_tied_is_equal_bit_by_bit(tmp_path):
    nan, zero = torch.full((4, 4), float("nan")), torch.zeros(300, 300)
    signed = zero.clone()
    signed[299, 299] = -0.0
    save_file({"a": nan, "b": nan.clone(), "c": zero, "d": signed, "e": zero.clone()}, tmp_path / "m.safetensors")
    assert open_checkpoint(tmp_path).aliases == {"b": "a", "e": "c"}


def test_a_tensor_may_begin_at_any_byte(tmp_path):
    header = {"a": entry("U8", (3,), (0, 3)), "b": entry("F32", (2,), (3, 11))}
    raw(tmp_path / "m.safetensors", json.dumps(header).encode() + b" ", b"abc" + struct.pack("<2f", 1.5, -2))
    found = open_checkpoint(tmp_path).tensors
    assert found["a"].load().tolist() == [97, 98, 99]
    assert found["b"].load().tolist() == [1.5, -2.0]


def test_what_is_written_to_a_tensor_does_not_reach_its_file(tmp_path):
    save_file(state(), tmp_path / "m.safetensors")
    stored = open_checkpoint(tmp_path).tensors["a.weight"]
    stored.load().zero_()
    assert same(stored.load(), state()["a.weight"])


def test_numbers_of_four_bits(tmp_path):
    numbers = torch.arange(32, dtype=torch.uint8).reshape(4, 8).view(torch.float4_e2m1fn_x2)
    save_file({"a": numbers}, tmp_path / "m.safetensors")
    stored = open_checkpoint(tmp_path).tensors["a"]
    assert (stored.shape, stored.size) == ((4, 8), 32)
    assert same(stored.load(), numbers)


def test_a_type_that_pytorch_lacks_is_named(tmp_path):
    raw(tmp_path / "m.safetensors", {"a": entry("F6_E2M3", (4,), (0, 3))}, bytes(3))
    with pytest.raises(BadInput, match="tensor 'a' of .* is of type F6_E2M3, which PyTorch lacks"):
        open_checkpoint(tmp_path)


def test_metadata_of_all_files(tmp_path):
    sharded(tmp_path)
    names = sorted(state())
    save_file({n: state()[n] for n in names[:3]}, tmp_path / "one.safetensors", {"rank": "8", "base": "one"})
    save_file({n: state()[n] for n in names[3:]}, tmp_path / "two.safetensors", {"alpha": "4", "base": "two"})
    assert open_checkpoint(tmp_path).metadata == {"rank": "8", "alpha": "4", "base": "one"}


def test_what_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"none.safetensors does not exist"):
        open_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(BadInput, match="holds 0 .safetensors files"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file(state(), tmp_path / f"{name}.safetensors")
    with pytest.raises(BadInput, match="holds 2 .safetensors files"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    index = sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(BadInput, match=r"two.safetensors is missing \(1 of 2\)"):
        open_checkpoint(index)


def test_a_name_in_two_shards_is_refused(tmp_path):
    index = sharded(tmp_path)
    save_file({**{n: state()[n] for n in sorted(state())[3:]}, "a.bias": torch.zeros(3)}, tmp_path / "two.safetensors")
    with pytest.raises(BadInput, match="'a.bias' is both in one.safetensors and two.safetensors"):
        open_checkpoint(index)


def test_an_index_that_disagrees_with_its_shards(tmp_path):
    good = json.loads(sharded(tmp_path).read_text())["weight_map"]
    for index, told in (
        ({**good, "ghost": "one.safetensors"}, "'ghost' is not in one.safetensors"),
        ({**good, "a.bias": "two.safetensors"}, "'a.bias' is not in two.safetensors"),
        ({name: file for name, file in good.items() if name != "a.bias"}, "'a.bias' is in no entry"),
    ):
        with pytest.raises(BadInput, match=told):
            open_checkpoint(sharded(tmp_path, index))


@pytest.mark.parametrize("shard", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors"])
def test_shards_elsewhere_are_refused(tmp_path, shard):
    with pytest.raises(BadInput, match="does not lie beside it"):
        open_checkpoint(sharded(tmp_path, {"a.bias": shard}))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["b"]}}']
)
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises((CorruptFile, BadInput)):
        open_checkpoint(tmp_path)


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""),
        (b"not json", b""),
        ([], b""),
        ({"a": entry()}, b"1234567"),
        ({"a": entry()}, b"123456789"),
        ({"a": entry(shape=(3,))}, bytes(8)),
        ({"a": entry(shape=(1 << 62, 1 << 62))}, bytes(8)),
        ({"a": entry(shape=(1 << 29,))}, bytes(8)),
        ({"a": entry(shape=(-1,))}, bytes(8)),
        ({"a": entry(dtype="F99")}, bytes(8)),
        ({"a": entry(), "b": entry()}, bytes(8)),
        ({"a": entry(offsets=(8, 0))}, bytes(8)),
        ({"a": 3}, b""),
        (b"\xff" * 20, b""),
    ],
    ids=str,
)
def test_headers_that_lie(tmp_path, header, data):
    with pytest.raises(CorruptFile, match=r"m.safetensors is not a readable .safetensors file"):
        open_checkpoint(raw(tmp_path / "m.safetensors", header, data))


@pytest.mark.parametrize("data", [b"", b"1234567", struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 99) + b"{}"])
def test_lengths_that_lie(tmp_path, data):
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(CorruptFile):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page.*fetch it again"),
        (b"PK\x03\x04" + bytes(100), r"a zip archive.*weights_only=True.*safetensors.torch.save_file"),
        (b"\x80\x02}q\x00." + bytes(100), "a pickle.*weights_only=True"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file"),
        (b"\x89WF\n\x01\x00" + bytes(100), "a file of waterfill already.*waterfill decompress"),
        (b"", "empty; fetch"),
    ],
)
def test_a_file_of_another_kind_is_known_by_its_first_bytes(tmp_path, first, told):
    (tmp_path / "m.safetensors").write_bytes(first)
    with pytest.raises(CorruptFile, match=rf"m.safetensors is not a readable .safetensors file: it is {told}"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_an_index_of_any_name_and_folders_that_do_not_say_which(tmp_path):
    sharded(tmp_path).rename(tmp_path / "diffusion_pytorch_model.safetensors.index.json")
    assert sorted(open_checkpoint(tmp_path).tensors) == sorted(state())
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(BadInput, match="holds 2 indexes of shards, such as diffusion.*name the one"):
        open_checkpoint(tmp_path)
    sharded(tmp_path)  # the usual name is the one that is meant
    assert sorted(open_checkpoint(tmp_path).tensors) == sorted(state())
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(BadInput, match=r"holds 0 .safetensors files.*pytorch_model.bin is pickled"):
        open_checkpoint(tmp_path / "pickled")
