"""Damaged, newer and hostile files: every one is refused, for the right reason, at a bounded cost in memory."""

import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from waterfill.errors import CorruptFile, NewerFormat
from waterfill.storage import FileReader, FileWriter

HEAD = b"\x89WF\n\x01\x00"

on_disk = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(path: Path, data: bytes) -> None:
    """Open and verify a file of these bytes."""
    path.write_bytes(data)
    with FileReader(path) as reader:
        reader.verify()


def deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()


def sealed(body: bytes, blobs: bytes = b"", checksums: bytes | None = None) -> bytes:
    """A file whose checksums are right, whatever its index says: what a hostile writer would make."""
    return enclosed(deflate(body) + (struct.pack("<I", zlib.crc32(blobs)) if checksums is None else checksums), blobs)


def enclosed(index: bytes, blobs: bytes = b"") -> bytes:
    """A file around these bytes as its index."""
    length = struct.pack("<I", len(index))
    return HEAD + blobs + index + length + struct.pack("<I", zlib.crc32(HEAD + index + length))


def written(path: Path, blobs: dict[str, bytes]) -> bytes:
    """The bytes of a file of these blobs."""
    with FileWriter(path) as writer:
        for name, data in blobs.items():
            writer.add(name, data)
        writer.finish({"made": "by hand"})
    return path.read_bytes()


@pytest.fixture
def small(tmp_path) -> bytes:
    """A file of three chunks: two small blobs, one larger than a chunk, an empty one."""
    blobs = {"conv.weight": b"\x01\x02\x03\x04\x05", "conv.bias": b"\x2a", "fc.weight": bytes(range(256)) * 17}
    return written(tmp_path / "small.wf", {**blobs, "fc.bias": b""})


def test_every_flipped_bit_is_found(tmp_path):
    data = written(tmp_path / "tiny.wf", {"conv.weight": b"\x01\x02\x03\x04\x05", "conv.bias": b"\x2a", "empty": b""})
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptFile, NewerFormat)):
            check(tmp_path / "damaged.wf", bytes(damaged))


def test_every_truncation_and_any_extension_is_found(tmp_path, small):
    for length in range(len(small)):
        with pytest.raises(CorruptFile):
            check(tmp_path / "damaged.wf", small[:length])
    for extra in (b"\0", b"\n", bytes(100), small):
        with pytest.raises(CorruptFile):
            check(tmp_path / "damaged.wf", small + extra)


@on_disk
@given(cut=st.data())
def test_any_damage_is_found_or_changes_nothing(tmp_path, small, cut):
    start = cut.draw(st.integers(0, len(small)))
    stop = cut.draw(st.integers(start, len(small)))
    damaged = small[:start] + cut.draw(st.binary(max_size=40)) + small[stop:]
    if damaged == small:
        return
    with pytest.raises((CorruptFile, NewerFormat)):
        check(tmp_path / "damaged.wf", damaged)


@on_disk
@given(st.binary(max_size=300), st.sampled_from([b"", HEAD[:4], HEAD]))
def test_random_bytes_are_refused(tmp_path, data, head):
    with pytest.raises((CorruptFile, NewerFormat)):
        check(tmp_path / "random.wf", head + data)


@on_disk
@given(st.binary(max_size=200), st.binary(max_size=20))
def test_random_indexes_under_right_checksums_are_refused_or_read(tmp_path, body, checksums):
    try:
        check(tmp_path / "random.wf", sealed(body, checksums=checksums))
    except CorruptFile as error:
        assert "random.wf" in str(error)


def test_damage_is_named_and_leaves_other_blobs_readable(tmp_path, small):
    damaged = bytearray(small)
    damaged[3000] ^= 1  # in fc.weight, a chunk of its own
    (tmp_path / "damaged.wf").write_bytes(damaged)
    with FileReader(tmp_path / "damaged.wf") as reader:
        assert reader.blob("conv.bias") == b"\x2a"
        with pytest.raises(CorruptFile, match=r"bytes 12 to 4364, blob 'fc.weight'"):
            reader.blob("fc.weight")
        with pytest.raises(CorruptFile, match="checksum"):
            reader.verify()


@pytest.mark.parametrize(
    ("body", "blobs", "says"),
    [
        (b"\x01\x00\x02a\n{}", b"xyz", "2 bytes of blobs are due, 3 are there"),
        (b"\x01\x00" + b"\xff" * 8 + b"\x7fa\n{}", b"x", "bytes of blobs are due"),
        (b"\x01\x00" + b"\xff" * 9 + b"\x7fa\n{}", b"x", "no number ends there"),
        (b"\xff\xff\xff\x7f", b"", "268435455 blobs are declared"),
        (b"\x02\x00\x00\x01\x00a\n{}", b"x", "2 blobs are declared, 1 are named"),
        (b"\x02\x00\x01\x01\x00a\n\n{}", b"x", "twice"),
        (b"\x01\x01\x01a\n{}", b"x", "shares more"),
        (b"\x01\x00\x01\n{}", b"x", "has 0 bytes"),
        (b"\x01\x00\x01" + b"a" * 1025 + b"\n{}", b"x", "has 1025 bytes"),
        (b"\x01\x00\x01a\x00b\n{}", b"x", "control character"),
        (b"\x01\x00\x01a\x7f\n{}", b"x", "control character"),
        (b"\x01\x00\x01\xff\n{}", b"x", "not UTF-8"),
        (b"\x01\x00\x01a\n[]", b"x", "not a JSON object"),
        (b"\x01\x00\x01a\n", b"x", "not JSON"),
        (b'\x01\x00\x01a\n{"a":NaN}', b"x", "NaN is no JSON number"),
        (b'\x01\x00\x01a\n{"a":' + b"[" * 65 + b"]" * 65 + b"}", b"x", "nested deeper"),
        (b'\x01\x00\x01a\n{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", b"x", "not JSON"),
        (b'\x01\x00\x01a\n{"a":' + b"9" * 9999 + b"}", b"x", "not JSON"),
        (b"\x00{}", b"", "0 checksums are due, 4 bytes"),
        (b"", b"", "no number ends there"),
    ],
)
def test_a_hostile_index_is_refused(tmp_path, body, blobs, says):
    with pytest.raises(CorruptFile, match=says):
        check(tmp_path / "hostile.wf", sealed(body, blobs))


@pytest.mark.parametrize("index", [b"", deflate(b"\x00{}")[:-1], b"\x07", deflate(b"\x00{}") + b"\0"])
def test_a_stream_that_is_not_one_is_refused(tmp_path, index):
    with pytest.raises(CorruptFile, match=r"does not end|is damaged|1 bytes are there"):
        check(tmp_path / "hostile.wf", enclosed(index))


def test_a_stream_has_to_end(tmp_path):
    unended = b"\x00\x03\x00\xfc\xff\x00{}"  # a stored block of three bytes that is not the last
    with pytest.raises(CorruptFile, match="does not end"):
        check(tmp_path / "hostile.wf", enclosed(unended))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\x00" + b" " * (48 << 20) + b"{}", "expands to more than"),
        (b"\x81\x80\x01" + bytes(16385) + b"\x01" * 16385 + b"\n" * 16385 + b"{}", "has 0 bytes"),
        (b"\xff\xff\xff\xff\x03" + bytes(60_000), "blobs are declared, more than"),
    ],
)
def test_memory_is_earned_by_bytes_that_are_there(tmp_path, body, says):
    data = sealed(body)
    assert len(data) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile, match=says):
            check(tmp_path / "bomb.wf", data)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_names_that_grow_by_sharing_are_capped(tmp_path):
    count = 68_000  # each name is the one before but for its last byte: 1000 bytes for the price of five
    shared = b"\x00" + b"\xe7\x07" * (count - 1)
    endings = b"a" * 1000 + b"\n" + b"b\n" * (count - 1)
    body = b"\xa0\x93\x04" + shared + bytes(count) + endings + b"{}"
    with pytest.raises(CorruptFile, match="the names have more than"):
        check(tmp_path / "bomb.wf", sealed(body, checksums=bytes(10_000)))


def test_newer_formats_are_named(tmp_path, small):
    with pytest.raises(NewerFormat, match=r"format version 2.*reads version 1"):
        check(tmp_path / "newer.wf", small[:4] + b"\x02" + small[5:])
    with pytest.raises(NewerFormat, match="required features 0x80"):
        check(tmp_path / "newer.wf", small[:5] + b"\x80" + small[6:])
    with pytest.raises(CorruptFile, match="no format version 0"):
        check(tmp_path / "older.wf", small[:4] + b"\x00" + small[5:])


def test_other_files_are_refused(tmp_path):
    for data in (b"", b"PK\x03\x04" + bytes(100), json.dumps({"a": 1}).encode()):
        with pytest.raises(CorruptFile, match="not a waterfill file"):
            check(tmp_path / "other.wf", data)
    with pytest.raises(FileNotFoundError):
        FileReader(tmp_path / "missing.wf")
