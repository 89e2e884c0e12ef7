"""Speed and size of the entropy coder, one thread, against constriction and Zstandard in the same run.

Symbols are drawn from discretized Laplace densities of about 2, 3 and 5 bits: once all from one table, once from 64
tables chosen symbol by symbol. The others are slower: they, and ours beside them, are given fewer of the one-table
symbols. Rates are in millions of symbols a second, the best of three runs.

    python benchmarks/coding_speed.py [symbols]
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import zstandard

from waterfill.coding import coder
from waterfill.coding.density import SCALES, SHAPES, table

PEER_SYMBOLS = 4_000_000
LAPLACE = SHAPES.index(1.0)
RESULTS = Path(__file__).parent / "results" / "coding_speed.json"


def entropy(freq: np.ndarray) -> float:
    """Bits per symbol of a table [256]."""
    share = freq[freq > 0] / 4096
    return float(-(share * np.log2(share)).sum())


def timed(action: Callable[[], Any], runs: int = 3) -> tuple[Any, float]:
    """The result and the seconds of the fastest run."""
    best = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        result = action()
        best = min(best, time.perf_counter() - begin)
    return result, best


def draw(rng: np.random.Generator, freq: np.ndarray, select: np.ndarray) -> np.ndarray:
    """A symbol (int8 [n]) from the table (of freq [tables, 256]) that `select` names for it."""
    symbol_of_slot = np.stack([np.repeat(np.arange(256, dtype=np.uint8), row) for row in freq]).view(np.int8)
    symbols = np.empty(len(select), dtype=np.int8)
    for begin in range(0, len(select), 1 << 20):
        piece = slice(begin, begin + (1 << 20))
        symbols[piece] = symbol_of_slot[select[piece], rng.integers(0, 4096, len(select[piece]), dtype=np.uint16)]
    return symbols


def row(name: str, symbols: int, size: int, seconds: tuple[float, float]) -> dict[str, Any]:
    """One line of the result; `size` in bytes, `seconds` of encoding and decoding."""
    encode, decode = (symbols / 1e6 / time for time in seconds)
    return {"coder": name, "bits_per_symbol": 8 * size / symbols, "encode": encode, "decode": decode}


def ours(symbols: np.ndarray, select: np.ndarray | None, freq: np.ndarray, isa: str) -> dict[str, Any]:
    def decode() -> np.ndarray:
        decoder = coder.Decoder(data, freq, coder.MAX_LANES, isa=isa)
        found = decoder.decode(len(symbols) if select is None else select)
        decoder.finish()
        return found

    data, encoding = timed(lambda: coder.encode([(symbols, select)], freq, coder.MAX_LANES, isa=isa))
    found, decoding = timed(decode)
    assert np.array_equal(found, symbols)
    tables = "one table" if select is None else f"{len(freq)} tables"
    return row(f"waterfill {isa}, {tables}", len(symbols), len(data), (encoding, decoding))


def with_constriction(symbols: np.ndarray, freq: np.ndarray) -> dict[str, Any]:
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
    return row("constriction range coder", len(symbols), words.nbytes, (encoding, decoding))


def with_zstandard(symbols: np.ndarray, level: int) -> dict[str, Any]:
    raw = symbols.tobytes()
    data, encoding = timed(lambda: zstandard.ZstdCompressor(level=level).compress(raw), runs=3 if level < 10 else 1)
    found, decoding = timed(lambda: zstandard.ZstdDecompressor().decompress(data))
    assert found == raw
    return row(f"Zstandard, level {level}", len(symbols), len(data), (encoding, decoding))


def measure_at(bits: float, symbols: int) -> dict[str, Any]:
    """All coders on Laplace symbols of about this many bits; the 64 tables are scales around that, two octaves wide."""
    rng = np.random.default_rng(0)
    scale = min(range(SCALES), key=lambda index: abs(entropy(table(LAPLACE, index)) - bits))
    one = table(LAPLACE, scale)[None]
    many = np.stack([table(LAPLACE - 2 + i % 4, min(max(scale - 8 + i // 4, 0), SCALES - 1)) for i in range(64)])
    plain = draw(rng, one, np.zeros(symbols, dtype=np.uint16))
    select = rng.integers(0, len(many), symbols, dtype=np.uint16)
    mixed = draw(rng, many, select)
    rows = [
        ours(*stream, isa) for isa in coder.instruction_sets() for stream in ((plain, None, one), (mixed, select, many))
    ]
    few = plain[:PEER_SYMBOLS]
    peers = [with_constriction(few, one[0]), with_zstandard(few, 3), with_zstandard(few, 19)]
    beside = ours(few, None, one, coder.instruction_sets()[-1])
    beside["coder"] += f", {len(few) / 1e6:g} M"
    for peer in peers:
        peer["times_slower"] = {way: beside[way] / peer[way] for way in ("encode", "decode")}
        peer["times_larger"] = peer["bits_per_symbol"] / beside["bits_per_symbol"]
    return {"entropy": coder.ideal_bits([(plain, None)], one) / symbols, "rows": [*rows, beside, *peers]}


def measure(symbols: int = 50_000_000) -> dict[str, Any]:
    """Rates (millions of symbols a second), sizes and ratios, by the bits of the density."""
    at = {str(bits): measure_at(bits, symbols) for bits in (2, 3, 5)}
    return {"symbols": symbols, "machine": platform.processor() or platform.machine(), "by_bits": at}


def main() -> None:
    result = measure(*map(int, sys.argv[1:]))
    for measured in result["by_bits"].values():
        heading = "bits/symbol   encode   decode    ours: times faster, smaller"
        print(f"\nentropy {measured['entropy']:.4f} bits      {heading}")
        for line in measured["rows"]:
            times = "".join(f"{ratio:8.1f}" for ratio in line.get("times_slower", {}).values())
            larger = f"{100 * line['times_larger'] - 100:8.2f} %" if times else ""
            rates = f"{line['bits_per_symbol']:11.4f} {line['encode']:8.0f} {line['decode']:8.0f}"
            print(f"{line['coder']:34}{rates}{times}{larger}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
