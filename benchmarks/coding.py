"""Speed and size of the entropy coder, one thread, beside constriction, Zstandard and DeepCABAC.

Symbols are drawn from discretized Laplace densities of about 2, 3 and 5 bits: once all from one table, once from 64
tables chosen symbol by symbol; peers, and ours beside them, are given fewer of the one-table symbols. Rates are in
millions of symbols a second, the best of three runs. Then weights of trained networks, rounded to a step of a quarter,
half and whole standard deviation per layer: real bytes with all side information.

    python benchmarks/coding.py [--symbols 50000000]
"""

import argparse
from typing import Any

import constriction
import numpy as np
import zstandard
from lib.coding_weights import weight_claims, weights_table
from lib.common import Table, claim, claims_table, data_folder, finish, timed

from waterfill.coding import rans
from waterfill.coding.density import SCALES, table
from waterfill.coding.density_tables import SHAPES

SYMBOLS = 50_000_000
PEER_SYMBOLS = 4_000_000
LAPLACE = SHAPES.index(1.0)
COLUMNS = {
    "entropy": ".2f",
    "coder": "",
    "tables": "d",
    "symbols": ",d",
    "bits/symbol": ".4f",
    "over ideal, %": ".3f",
    "encode, M/s": ",.0f",
    "decode, M/s": ",.0f",
    "ours encodes x": ".1f",
    "ours decodes x": ".1f",
}


def entropy(freq: np.ndarray) -> float:
    """Bits per symbol of a table [256]."""
    share = freq[freq > 0] / 4096
    return float(-(share * np.log2(share)).sum())


def draw(rng: np.random.Generator, freq: np.ndarray, select: np.ndarray) -> np.ndarray:
    """A symbol (int8 [n]) from the table (of freq [tables, 256]) that `select` names for it."""
    symbol_of_slot = np.stack([np.repeat(np.arange(256, dtype=np.uint8), row) for row in freq]).view(np.int8)
    symbols = np.empty(len(select), dtype=np.int8)
    for begin in range(0, len(select), 1 << 20):
        piece = slice(begin, begin + (1 << 20))
        symbols[piece] = symbol_of_slot[select[piece], rng.integers(0, 4096, len(select[piece]), dtype=np.uint16)]
    return symbols


def row(name: str, tables: int, symbols: int, found: tuple[int, float, float, float]) -> list[Any]:
    """A row without its entropy; found: bytes, ideal bits, and the seconds of encoding and decoding."""
    size, ideal, encoding, decoding = found
    rates = [symbols / 1e6 / encoding, symbols / 1e6 / decoding]
    return [name, tables, symbols, 8 * size / symbols, 100 * (8 * size / ideal - 1), *rates, None, None]


def ours(symbols: np.ndarray, select: np.ndarray | None, freq: np.ndarray, isa: str) -> list[Any]:
    """A row for our coder."""

    def decode() -> np.ndarray:
        decoder = rans.Decoder(data, freq, rans.MAX_LANES, isa=isa)
        found = decoder.decode(len(symbols) if select is None else select)
        decoder.finish()
        return found

    data, encoding = timed(lambda: rans.encode([(symbols, select)], freq, rans.MAX_LANES, isa=isa))
    found, decoding = timed(decode)
    assert np.array_equal(found, symbols)
    ideal = rans.ideal_bits([(symbols, select)], freq)
    return row(f"waterfill {isa}", len(freq), len(symbols), (len(data), ideal, encoding, decoding))


def with_constriction(symbols: np.ndarray, freq: np.ndarray) -> list[Any]:
    """Its range coder with a tabulated model: the fastest of its coders and models on these symbols."""
    model = constriction.stream.model.Categorical(np.roll(freq, 128).astype(np.float32) / 4096, perfect=False)
    message = symbols.astype(np.int32) + 128

    def encode() -> np.ndarray:
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(message, model)
        return encoder.get_compressed()

    words, encoding = timed(encode)
    found, decoding = timed(lambda: constriction.stream.queue.RangeDecoder(words).decode(model, len(message)))
    assert np.array_equal(found, message)
    ideal = rans.ideal_bits([(symbols, None)], freq[None])
    return row("constriction range coder", 1, len(symbols), (words.nbytes, ideal, encoding, decoding))


def with_zstandard(symbols: np.ndarray, freq: np.ndarray, level: int) -> list[Any]:
    """A row for Zstandard on the bytes."""
    raw = symbols.tobytes()
    data, encoding = timed(lambda: zstandard.ZstdCompressor(level=level).compress(raw), runs=3 if level < 10 else 1)
    found, decoding = timed(lambda: zstandard.ZstdDecompressor().decompress(data))
    assert found == raw
    ideal = rans.ideal_bits([(symbols, None)], freq[None])
    return row(f"Zstandard, level {level}", 1, len(symbols), (len(data), ideal, encoding, decoding))


def measure_at(bits: float, symbols: int) -> list[list[Any]]:
    """All coders on Laplace symbols of about this many bits; the 64 tables are scales around that, two octaves wide."""
    rng = np.random.default_rng(0)
    scale = min(range(SCALES), key=lambda index: abs(entropy(table(LAPLACE, index)) - bits))
    one = table(LAPLACE, scale)[None]
    many = np.stack([table(LAPLACE - 2 + i % 4, min(max(scale - 8 + i // 4, 0), SCALES - 1)) for i in range(64)])
    plain = draw(rng, one, np.zeros(symbols, dtype=np.uint16))
    select = rng.integers(0, len(many), symbols, dtype=np.uint16)
    mixed = draw(rng, many, select)
    rows = []
    for isa in rans.instruction_sets():
        rows += [ours(plain, None, one, isa), ours(mixed, select, many, isa)]
    few = plain[:PEER_SYMBOLS]
    beside = ours(few, None, one, rans.instruction_sets()[-1])
    peers = [with_constriction(few, one[0]), with_zstandard(few, one[0], 3), with_zstandard(few, one[0], 19)]
    for peer in peers:
        peer[-2:] = [beside[i] / peer[i] for i in (5, 6)]
    return [[entropy(one[0]), *line] for line in (*rows, beside, *peers)]


def speed_claims(speed: Table) -> list[list[Any]]:
    """The slowest and the largest of our coder's best instruction set, over all densities."""
    best = f"waterfill {rans.instruction_sets()[-1]}"
    lines = [dict(zip(speed.columns, line, strict=True)) for line in speed.rows]
    own = [line for line in lines if line["coder"] == best and line["symbols"] > PEER_SYMBOLS] or [
        line for line in lines if line["coder"] == best
    ]
    one, many = ([line for line in own if (line["tables"] > 1) == several] for several in (False, True))
    bars = (("decode", one, "one table", 1200), ("decode", many, "64 tables", 800), ("encode", own, "both", 250))
    slowest = [min(line[f"{way}, M/s"] for line in some) for way, some, _, _ in bars]
    found = [
        claim(f"{way}, {what}, M symbols/s", rate, bar, ",.0f")
        for (way, _, what, bar), rate in zip(bars, slowest, strict=True)
    ]
    over = max(line["over ideal, %"] for line in own)
    return [*found, claim("coded size over the ideal length, %", over, 0.3, ".3f", at_most=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--symbols", type=int, default=SYMBOLS)
    options = parser.parse_args()
    rows = [line for bits in (2, 3, 5) for line in measure_at(bits, options.symbols)]
    speed = Table("Coders on Laplace symbols, one thread", COLUMNS, rows)
    print(speed.text(), flush=True)
    weights = weights_table(data_folder())
    claims = claims_table([*speed_claims(speed), *weight_claims(weights)])
    tables = {"speed": speed, "weights": weights, "claims": claims}
    partial = options.symbols != SYMBOLS
    finish("coding", tables, vars(options), partial=partial, shown=("weights", "claims"))


if __name__ == "__main__":
    main()
