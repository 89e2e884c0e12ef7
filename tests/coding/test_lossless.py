"""Words and bytes by the reference: exact for every method and type, close to the entropy, safe on damaged bytes."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.coding.lossless import magnitude, methods, planes, word_format
from waterfill.coding.lossless.methods import Constant, Form, Masked, Planes, Scaled, Short, Signed
from waterfill.coding.lossless.word_format import WordFormat
from waterfill.coding.stream import Reader, Tally, Writer
from waterfill.errors import CorruptFile

FLOAT32, BFLOAT16, FLOAT16 = WordFormat(32, 8, 23), WordFormat(16, 8, 7), WordFormat(16, 5, 10)
METHODS = (Constant, Planes, Signed, Scaled, Masked)


def written(plan: methods.Plan) -> bytes:
    out = Writer()
    plan.write(out)
    return out.finish()


def back(data: bytes, plan: methods.Plan) -> np.ndarray:
    shape = plan.words.shape[0], plan.words.shape[1] // (plan.form.size if plan.form.layout is None else 1)
    src = Reader(data)
    words, _ = methods.read(src, plan.method, shape, plan.form)
    src.end()
    return words


def gaussian(rows: int, cols: int, layout: WordFormat = FLOAT32, seed: int = 0) -> np.ndarray:
    """Words of a matrix whose rows and columns differ in scale."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, cols)) * np.exp(rng.normal(size=(rows, 1))) * np.exp(0.5 * rng.normal(size=cols))
    if layout.exponent == 5:
        return values.astype(np.float16).view(np.uint16)
    words = values.astype(np.float32).view(np.uint32)
    return words if layout.bits == 32 else (words >> 16).astype(np.uint16)


@given(st.data(), st.sampled_from([FLOAT32, BFLOAT16, FLOAT16]), st.sampled_from([Planes, Signed, Scaled, Masked]))
def test_every_method_gives_back_any_float_words(data: st.DataObject, layout: WordFormat, method: type) -> None:
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    some = [0, 1, 1 << (layout.bits - 1), (1 << layout.bits) - 1, ((1 << layout.exponent) - 1) << layout.mantissa]
    word = st.one_of(st.sampled_from(some), st.integers(0, (1 << layout.bits) - 1))
    words = np.array(data.draw(st.lists(word, min_size=rows * cols, max_size=rows * cols)))
    words = words.astype(f"<u{layout.bits // 8}").reshape(rows, cols)
    plan = method(words, Form(layout, layout.bits // 8))
    assert np.array_equal(back(written(plan), plan), words)


@pytest.mark.parametrize("layout", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("shape", [(300, 700), (1, 5000), (5000, 1), (3, 140_000)])
def test_matrices_of_several_pieces_come_back(layout: WordFormat, shape: tuple[int, int]) -> None:
    words = gaussian(*shape, layout)
    words[:, ::97] = 0
    for method in (Planes, Scaled, Masked):
        plan = method(words, Form(layout, words.itemsize))
        assert np.array_equal(back(written(plan), plan), words)


@given(st.integers(0, 23), st.booleans(), st.integers(1, 40), st.integers(1, 90))
def test_words_taken_apart_are_put_together_again(mantissa: int, signed: bool, rows: int, cols: int) -> None:
    layout = WordFormat(32, 8, mantissa, signed)
    words = gaussian(rows, cols) & np.uint32(0xFFFFFFFF << layout.dropped & 0xFFFFFFFF)
    words &= np.uint32(0xFFFFFFFF if signed else 0x7FFFFFFF)
    rng = np.random.default_rng(1)
    factors = rng.integers(-40, 1100, rows).astype(np.int16), rng.integers(-20, 20, cols).astype(np.int16)
    coded = (magnitude.family(5, layout.top) > 0).astype(np.uint8)
    symbols, raw = word_format.split(words, layout, factors, coded)
    merged = np.empty_like(words)
    word_format.merge(symbols, raw, layout, factors, merged)
    where = np.flatnonzero(symbols == -128)
    word_format.patch(merged, where, word_format.tops(words, layout).ravel()[where], layout)
    assert np.array_equal(merged, words)


def test_the_density_of_magnitudes_is_the_familys_mass() -> None:
    gauss = magnitude.family(8, 0)[0]  # whole octaves, the standard deviation at the beginning of one
    for octave in range(-6, 2):
        expected = math.erf(2.0 ** (octave + 0.5)) - math.erf(2.0 ** (octave - 0.5))
        assert abs(int(gauss[octave & 255]) / 4096 - expected) < 3e-4
    for shape in range(magnitude._HISTOGRAM):
        assert (magnitude.family(shape, 2).sum(1) == 4096).all()


def test_scaled_comes_close_to_the_entropy_of_a_gaussian() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(256, 1024)).astype(np.float32)
    bits = Scaled(values.view(np.uint32), Form(FLOAT32, 4)).bits / values.size
    differential = 0.5 * np.log2(2 * np.pi * np.e)
    entropy = (
        differential + 23 - np.floor(np.log2(np.abs(values))).mean()
    )  # floats near x lie 2^(floor(log2 x) - 23) apart
    assert 0 < bits - entropy < 0.05


def test_each_method_is_found_where_it_is_the_best() -> None:
    dense = gaussian(64, 128)
    pruned = np.where(np.random.default_rng(1).random(dense.shape) < 0.7, np.uint32(0), dense)
    form = Form(FLOAT32, 4)
    assert isinstance(methods.plan(np.full((9, 9), 5, np.uint32), form), Constant)
    assert isinstance(methods.plan(dense, form), Scaled)
    assert isinstance(methods.plan(pruned, form), Masked)
    positive = gaussian(1, 24) & np.uint32(0x7FFFFFFF)
    assert isinstance(methods.plan(positive, Form(WordFormat(32, 8, 23, False), 4)), Short)
    noise = np.random.default_rng(2).integers(0, 1 << 32, (60, 60), dtype=np.uint32)
    assert isinstance(methods.plan(noise, form), Planes)


def test_factors_of_channels_and_positions_are_found() -> None:
    rng = np.random.default_rng(5)
    kernels = rng.normal(size=(16, 32, 9)) * 2.0 ** rng.normal(size=(1, 1, 9)) * 2.0 ** rng.normal(size=(1, 32, 1))
    words = kernels.astype(np.float32).reshape(16, 288).view(np.uint32)
    with_kernel, without = (Scaled(words, Form(FLOAT32, 4, positions)) for positions in (9, 1))
    assert with_kernel.bits < without.bits - 500
    assert methods.read(Reader(written(with_kernel)), 3, (16, 288), with_kernel.form)[1] == 9


@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_planes_of_any_word_size_come_back_and_gain(size: int) -> None:
    rng = np.random.default_rng(size)
    octets = np.zeros((50, 60, size), np.uint8)
    octets[:, :, 0] = rng.integers(0, 256, (50, 60))
    octets[:, :, -1] = np.where(rng.random((50, 60)) < 0.9, 0x80, rng.integers(0, 256, (50, 60)))
    plan = methods.plan(octets.reshape(50, -1), Form(None, size))
    data = written(plan)
    assert np.array_equal(back(data, plan).reshape(octets.shape), octets)
    assert len(data) < 3000 * (min(size - 1, 1) + 0.35)


@pytest.mark.parametrize("method", METHODS)
def test_damaged_bytes_are_refused_or_decode_to_words_of_the_type(method: type) -> None:
    words = gaussian(20, 30, FLOAT16)
    words[::3] = 0
    plan = method(words, Form(FLOAT16, 2))
    data = written(plan)
    for end in range(len(data)):
        with pytest.raises(CorruptFile):
            back(data[:end], plan)
    rng = np.random.default_rng(0)
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
        with contextlib.suppress(CorruptFile):
            assert back(bytes(flipped), plan).dtype == np.uint16


def test_the_tally_counts_the_bytes() -> None:
    plan = methods.plan(gaussian(64, 128), Form(FLOAT32, 4))
    tally = Tally()
    plan.write(tally)
    assert tally.bits == 8 * len(written(plan))


def test_a_constant_wider_than_its_type_is_refused() -> None:
    with pytest.raises(CorruptFile, match="wider"):
        Constant.read(Reader(b"\x04\xff\xff\xff\xff"), (2, 2), Form(WordFormat(32, 8, 3), 4))


def test_spans_cover_every_row_once() -> None:
    rows = [list(range(10))[part] for part in planes.spans((10, 7), 20)]
    assert rows == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [part.stop for part in planes.spans((3, 100), 20)] == [1, 2, 3]
