"""Words in one call of the core: the bytes and words of the reference, whatever they are, on any number of threads."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding import native
from waterfill.coding.density_tables import OCTAVE, SHAPES, SURVIVAL
from waterfill.coding.lossless import magnitude, words
from waterfill.coding.lossless.words import Packed, Type, Unpacked, Unread
from waterfill.coding.stream import Reader, Writer
from waterfill.errors import CorruptFile

FLOAT32, BFLOAT16, FLOAT16 = Type(4, 8, 23), Type(2, 8, 7), Type(2, 5, 10)
TYPES = [FLOAT32, BFLOAT16, FLOAT16, Type(1), Type(2), Type(8), Type(16)]
needs_core = pytest.mark.skipif(native.core is None, reason="compares the core with the reference: there is no core")


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """A block in which everything is done by the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "core", None)
        yield


def as_blob(packed: Packed) -> bytes:
    out = Writer()
    out.claim(packed.entries)
    out.raw(packed.data)
    return out.finish()


def unread(blob: bytes, method: int, kind: Type, like: np.ndarray) -> Unread:
    return Unread(Reader(blob), method, kind, np.full(like.shape, 0xA5, np.uint8))


def outcome(blob: bytes, method: int, kind: Type, like: np.ndarray) -> tuple[object, ...]:
    """What reading gives: bytes, kernel positions and the end, or the error."""
    one = unread(blob, method, kind, like)
    try:
        positions = words.unpack([one])
        one.src.end()
    except CorruptFile as error:
        return (str(error),)
    return one.octets.tobytes(), positions


def floats(rows: int, cols: int, kind: Type, seed: int) -> np.ndarray:
    """The bytes of a matrix whose rows and columns differ in scale, some of it zero, infinite or denormal."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, cols)) * np.exp(rng.normal(size=(rows, 1))) * np.exp(0.5 * rng.normal(size=cols))
    values[rng.random((rows, cols)) < rng.choice([0, 0.01, 0.4])] = 0
    values[rng.random((rows, cols)) < rng.choice([0, 0.01])] = rng.choice([np.inf, 1e-40, -np.nan])
    if kind == FLOAT16:
        return values.astype(np.float16).view(np.uint8)
    raw = values.astype("<f4").view(np.uint8).reshape(rows, cols, 4)
    return np.ascontiguousarray(raw[:, :, 4 - kind.size :]).reshape(rows, cols * kind.size)


@st.composite
def matrices(draw: st.DrawFn) -> Unpacked:
    kind = draw(st.sampled_from(TYPES))
    positions = draw(st.sampled_from([1, 3, 9]))
    rows, cols = draw(st.integers(1, 12)), positions * draw(st.integers(1, 9))
    seed = draw(st.integers(0, 1 << 20))
    rng = np.random.default_rng(seed)
    if kind.exponent:
        octets = floats(rows, cols, kind, seed)
        mask = np.frombuffer(
            (draw(st.sampled_from([-1, -256, 0x7FFF, 0])) & 0xFFFFFFFF).to_bytes(4, "little"), np.uint8
        )
        octets &= np.tile(mask[4 - kind.size :], octets.size // kind.size).reshape(octets.shape)
    else:
        octets = rng.integers(0, draw(st.sampled_from([1, 2, 5, 256])), (rows, cols * kind.size)).astype(np.uint8)
    return Unpacked(octets, kind, positions)


@needs_core
@given(matrices())
def test_the_core_writes_and_reads_what_the_reference_does(matrix: Unpacked) -> None:
    packed = words.pack([matrix])[0]
    with reference():
        assert words.pack([matrix])[0] == packed
    kind = matrix.type._replace(mantissa=packed.mantissa)
    found = outcome(as_blob(packed), packed.method, kind, matrix.octets)
    assert found[0] == matrix.octets.tobytes()
    with reference():
        assert outcome(as_blob(packed), packed.method, kind, matrix.octets) == found


@needs_core
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (FLOAT32, (1, 140_000)),
        (BFLOAT16, (2000, 80)),
        (FLOAT16, (3, 140_000)),
        *(
            pytest.param(kind, shape, marks=pytest.mark.slow)
            for kind in (FLOAT32, BFLOAT16, FLOAT16)
            for shape in ((300, 700), (1, 150_000), (2000, 80), (3, 140_000))
        ),
    ],
)
def test_they_agree_on_matrices_of_several_pieces(kind: Type, shape: tuple[int, int]) -> None:
    octets = floats(*shape, kind, 1)
    packed = words.pack([Unpacked(octets, kind)])[0]
    with reference():
        assert words.pack([Unpacked(octets, kind)])[0] == packed
    found = outcome(as_blob(packed), packed.method, kind._replace(mantissa=packed.mantissa), octets)
    assert found[0] == octets.tobytes()


@needs_core
@given(matrices(), st.data())
def test_the_core_refuses_exactly_what_the_reference_refuses(matrix: Unpacked, data: st.DataObject) -> None:
    packed = words.pack([matrix])[0]
    blob = bytearray(as_blob(packed))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bytes(blob[: data.draw(st.integers(0, len(blob)))])
    methods = st.one_of(st.just(packed.method), st.integers(0, 7))
    arguments = damaged, data.draw(methods), matrix.type._replace(mantissa=packed.mantissa), matrix.octets
    core_alone = native.core.unpack_words(words._families(), [_task(unread(*arguments))], 1)[0]
    with reference():
        expected = outcome(*arguments)
    assert outcome(*arguments) == expected
    assert (core_alone is None) <= (len(expected) == 1)


def _task(one: Unread) -> tuple[object, ...]:
    return (*one.src.ahead(), one.method, *one.type, one.octets)


@needs_core
@given(st.binary(max_size=60), st.integers(0, 7), st.sampled_from(TYPES), st.integers(1, 9), st.integers(1, 40))
def test_any_bytes_are_words_or_refused(blob: bytes, method: int, kind: Type, rows: int, cols: int) -> None:
    like = np.zeros((rows, cols * kind.size), np.uint8)
    found = outcome(blob, method, kind, like)
    with reference():
        assert outcome(blob, method, kind, like) == found


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_matrices_at_once_are_as_one_after_the_other(threads: int) -> None:
    shapes = [(1, 16), (40, 90), (1, 1), (300, 400), (0, 7), (3, 0), (64, 64)]
    tasks = [Unpacked(floats(*shape, FLOAT32, i), FLOAT32) for i, shape in enumerate(shapes)]
    packed = words.pack(tasks, threads)
    assert packed == [words.pack([task])[0] for task in tasks]
    reading = [
        unread(as_blob(one), one.method, FLOAT32._replace(mantissa=one.mantissa), task.octets)
        for one, task in zip(packed, tasks, strict=True)
    ]
    words.unpack(reading, threads)
    for one, task in zip(reading, tasks, strict=True):
        one.src.end()
        assert np.array_equal(one.octets, task.octets)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_damaged_matrix_of_many_is_named(threads: int) -> None:
    tasks = [Unpacked(floats(200, 400, FLOAT32, i), FLOAT32) for i in range(3)]
    packed = words.pack(tasks)
    reading = [unread(as_blob(one), one.method, FLOAT32, task.octets) for one, task in zip(packed, tasks, strict=True)]
    cut = as_blob(packed[1])[:1000]
    reading[1] = reading[1]._replace(src=Reader(cut, "tensor 'b'"))
    with pytest.raises(CorruptFile, match="tensor 'b', byte"):
        words.unpack(reading, threads)


@needs_core
def test_the_core_derives_the_tables_of_the_reference() -> None:
    families = native.core.Families(SURVIVAL, OCTAVE)
    for shape in range(len(SHAPES)):
        for top in range(3):
            assert families.tables(shape, top) == magnitude.family(shape, top).astype("<u2").tobytes()


@needs_core
def test_the_core_refuses_arguments_that_no_words_have() -> None:
    families, octets = words._families(), np.zeros((2, 8), np.uint8)
    for size, exponent, mantissa in [(3, 8, 7), (4, 8, 24), (2, 8, 8), (0, 0, 0), (17, 0, 0), (5, 0, 0)]:
        with pytest.raises(ValueError, match="wanted|no word"):
            native.core.pack_words(families, [(octets, size, exponent, mantissa, 1)], 1)
    with pytest.raises(ValueError, match="positions"):
        native.core.pack_words(families, [(octets, 4, 8, 23, 3)], 1)
