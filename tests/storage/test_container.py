"""The container: what goes in comes out, misuse is refused, and a failed write leaves nothing behind."""

import errno
import json
import os
import re
import resource
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.places import FORMAT

from waterfill.errors import BadInput, CorruptFile, OutputExists
from waterfill.storage import FileReader, FileWriter, size_of
from waterfill.storage.index import Index

EXAMPLE = {"conv.weight": b"\x01\x02\x03\x04\x05", "conv.bias": b"\x2a"}
HEAD = b"\x89WF\n\x01\x00"

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
on_disk = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, blobs: dict[str, bytes], manifest: dict | None = None, force: bool = True) -> int:
    with FileWriter(path, force=force) as writer:
        for name, data in blobs.items():
            writer.add(name, data)
        return writer.finish(manifest or {})


def resnet20() -> dict[str, int]:
    """Names and plausible blob lengths (bytes) of a ResNet-20 at about 1.6 bits per weight, norms included."""
    lengths = {"conv1.weight": 110}

    def norm(name: str, channels: int) -> None:
        sizes = {"weight": channels, "bias": channels, "running_mean": 2, "running_var": 2, "num_batches_tracked": 9}
        lengths.update({f"{name}.{key}": size for key, size in sizes.items()})

    norm("bn1", 16)
    for stage in (1, 2, 3):
        for block in range(3):
            for conv in (1, 2):
                lengths[f"layer{stage}.{block}.conv{conv}.weight"] = 100 * 4**stage + 37 * block + conv
                norm(f"layer{stage}.{block}.bn{conv}", 8 << stage)
    return {**lengths, "linear.weight": 150, "linear.bias": 12}


@on_disk
@given(blobs=st.dictionaries(NAMES, st.binary(max_size=6000), max_size=8), manifest=st.dictionaries(st.text(), JSON))
def test_what_goes_in_comes_out(tmp_path, blobs, manifest):
    path = tmp_path / "model.wf"
    size = write(path, blobs, manifest)
    lengths = {name: len(data) for name, data in blobs.items()}
    assert size == path.stat().st_size == size_of(manifest, lengths)
    with FileReader(path) as reader:
        reader.verify()
        assert (reader.version, reader.size, reader.manifest) == (1, size, manifest)
        assert reader.names == tuple(blobs)
        assert reader.lengths == lengths
        assert {name: reader.blob(name) for name in reversed(reader.names)} == blobs


@pytest.mark.parametrize("sizes", [[4095, 1, 1], [4096, 0], [4097, 0], [0, 4096, 0], [0, 0], [9000, 9000], [1] * 5000])
def test_blobs_around_the_size_of_a_chunk(tmp_path, sizes):
    blobs = {str(number): bytes([number % 251]) * size for number, size in enumerate(sizes)}
    size = write(tmp_path / "model.wf", blobs)
    assert size == size_of({}, {name: len(data) for name, data in blobs.items()})
    with FileReader(tmp_path / "model.wf") as reader:
        assert {name: reader.blob(name) for name in reader.names} == blobs


@pytest.mark.parametrize(("sizes", "chunks"), [([4095, 1], 1), ([4096, 0], 1), ([4095, 2], 2), ([1, 4096, 1], 3)])
def test_small_blobs_share_a_checksum_up_to_4096_bytes(tmp_path, sizes, chunks):
    write(tmp_path / "model.wf", {str(number): bytes(size) for number, size in enumerate(sizes)})
    file = (tmp_path / "model.wf").read_bytes()
    inflater = zlib.decompressobj(-15)
    inflater.decompress(file[6 + sum(sizes) : -8])
    assert len(inflater.unused_data) == 4 * chunks


def test_threads_share_a_reader(tmp_path):
    blobs = {str(number): bytes([number]) * 5000 for number in range(200)}
    write(tmp_path / "model.wf", blobs)
    with FileReader(tmp_path / "model.wf") as reader, ThreadPoolExecutor(8) as pool:
        assert dict(zip(blobs, pool.map(reader.blob, blobs), strict=True)) == blobs


def test_the_same_input_gives_the_same_file(tmp_path):
    write(tmp_path / "a.wf", EXAMPLE, {"recipe": "Quantize()"})
    write(tmp_path / "b.wf", EXAMPLE, {"recipe": "Quantize()"})
    assert (tmp_path / "a.wf").read_bytes() == (tmp_path / "b.wf").read_bytes()


def test_the_overhead_of_a_resnet_stays_small():
    lengths = resnet20()
    assert size_of({"kinds": "0123" * 29}, lengths) - sum(lengths.values()) < 500


def test_many_alike_names_cost_a_few_bytes_each():
    lengths = {f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight": 5000 for layer in range(20) for e in range(64)}
    assert size_of({}, lengths) - sum(lengths.values()) < 5 * len(lengths)


def test_a_very_repetitive_manifest_can_be_read_back(tmp_path):
    manifest = {"kinds": "0" * 3_000_000}  # deflate alone would shrink it more than a reader lets it expand
    assert write(tmp_path / "model.wf", {}, manifest) == size_of(manifest, {})
    with FileReader(tmp_path / "model.wf") as reader:
        assert reader.manifest == manifest


def shown(language: str) -> bytes:
    """The bytes of the listing in docs/format.md, without its comments."""
    listing = re.search(rf"```{language}\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    assert listing, f"docs/format.md has no ```{language} listing"
    return bytes.fromhex(re.sub(r"[|].*", "", listing[1]))


def test_the_format_document_shows_a_real_file(tmp_path):
    write(tmp_path / "example.wf", EXAMPLE, {"made": "by hand"})
    file = (tmp_path / "example.wf").read_bytes()
    inflater = zlib.decompressobj(-15)
    assert inflater.decompress(file[12:-8]) == shown("inflated")
    assert inflater.unused_data == struct.pack("<I", zlib.crc32(file[6:12])) == shown("hex")[-12:-8]
    assert file == shown("hex")


# Misuse


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\x85", "\x7f", "\ud800", "x" * 1025, "ä" * 513])
def test_names_that_cannot_be_stored_are_refused(tmp_path, name):
    with pytest.raises(BadInput, match="rename"):
        write(tmp_path / "model.wf", {name: b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a/b/../c", "/etc/passwd", " ", "ä" * 512, "\u2028", "权重"])
def test_strange_names_are_names(tmp_path, name):
    write(tmp_path / "model.wf", {name: b"data"})
    with FileReader(tmp_path / "model.wf") as reader:
        assert reader.blob(name) == b"data"


def test_a_name_is_given_once(tmp_path):
    with FileWriter(tmp_path / "model.wf") as writer:
        writer.add("a", b"1")
        with pytest.raises(BadInput, match="'a' is taken"):
            writer.add("a", b"2")


@pytest.mark.parametrize(
    "manifest",
    [{"a": float("nan")}, {"a": b"bytes"}, {"a": {1, 2}}, ["a list"], {"a": json.loads("[" * 70 + "]" * 70)}],
)
def test_manifests_that_cannot_be_stored_are_refused(tmp_path, manifest):
    with pytest.raises(BadInput, match="manifest"):
        write(tmp_path / "model.wf", EXAMPLE, manifest)
    assert list(tmp_path.iterdir()) == []


def test_manifests_have_a_bounded_number_of_values(tmp_path):
    with pytest.raises(BadInput, match="more than 65536 values"):
        write(tmp_path / "model.wf", {}, {"a": [0] * 65536})
    write(tmp_path / "model.wf", EXAMPLE, {"a": [0] * 65536, "b": ',[{"' * 99_999})  # marks in texts do not count


def test_many_values_are_refused_before_they_take_memory(tmp_path):
    names = ",".join(f'"{number:x}":""' for number in range(1 << 19))
    body = b"\0" + f'{{"a":{{{names}}}}}'.encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    raw = packer.compress(body) + packer.flush()
    tracemalloc.start()
    with pytest.raises(CorruptFile, match="more than 65536 values"):
        Index.unpack(raw)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    tracemalloc.stop()


def test_a_missing_blob_names_those_near_it(tmp_path):
    write(tmp_path / "model.wf", EXAMPLE)
    with FileReader(tmp_path / "model.wf") as reader, pytest.raises(BadInput, match=r"is it one of 'conv.weight'"):
        reader.blob("conv.wieght")


# Failure while writing


def test_a_taken_path_is_kept_without_force(tmp_path):
    path = tmp_path / "model.wf"
    path.write_bytes(b"old")
    with pytest.raises(OutputExists, match="force"):
        write(path, EXAMPLE, force=False)
    with pytest.raises(OutputExists, match="folder"):
        write(tmp_path, EXAMPLE)
    assert path.read_bytes() == b"old"
    write(path, EXAMPLE, force=True)
    assert path.read_bytes().startswith(HEAD)


def test_a_path_taken_meanwhile_is_kept(tmp_path):
    path = tmp_path / "model.wf"
    with pytest.raises(OutputExists), FileWriter(path) as writer:
        path.write_bytes(b"somebody else's")
        writer.finish({})
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.wf", b"somebody else's")]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BadInput, match="nowhere does not exist"):
        FileWriter(tmp_path / "nowhere" / "model.wf")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.wf").symlink_to(tmp_path / "model.wf")
    write(tmp_path / "link.wf", EXAMPLE)
    assert (tmp_path / "link.wf").is_symlink()
    assert (tmp_path / "model.wf").read_bytes().startswith(HEAD)


def test_the_file_gets_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    write(tmp_path / "model.wf", EXAMPLE)
    assert (tmp_path / "model.wf").stat().st_mode == (tmp_path / "usual").stat().st_mode


def old_target_survives(tmp_path: Path, action) -> BaseException:
    """Run the action on a target that is there already; it has to fail and to leave target and folder as they were."""
    target = tmp_path / "model.wf"
    target.write_bytes(b"old")
    with pytest.raises(BaseException) as caught:
        action(target)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.wf", b"old")]
    return caught.value


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("crash")])
def test_a_crash_in_the_middle_leaves_no_trace(tmp_path, error):
    def crash(target):
        with FileWriter(target, force=True) as writer:
            writer.add("a", bytes(100_000))
            raise error

    assert old_target_survives(tmp_path, crash) is error


def test_leaving_without_finish_leaves_no_trace(tmp_path):
    with FileWriter(tmp_path / "model.wf") as writer:
        writer.add("a", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [10, 100_000])  # the limit is met when the buffer is flushed; when the blob is added
def test_a_full_disk_leaves_no_trace(tmp_path, size):
    def write_within_20_bytes(target):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        try:
            write(target, {"a": bytes(size)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    error = old_target_survives(tmp_path, write_within_20_bytes)
    assert isinstance(error, OSError)
    assert error.errno == errno.EFBIG


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_system_call_leaves_no_trace(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, call, fail)
    error = old_target_survives(tmp_path, lambda target: write(target, EXAMPLE))
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def test_a_killed_writer_leaves_the_target_alone(tmp_path):
    target = tmp_path / "model.wf"
    target.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        writer = FileWriter(target, force=True).__enter__()
        writer.add("a", bytes(100_000))
        os._exit(0)
    os.waitpid(child, 0)
    assert target.read_bytes() == b"old"
    write(target, EXAMPLE)
    assert target.read_bytes().startswith(HEAD)
