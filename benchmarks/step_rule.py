"""Is the step of high-rate theory still the best one when codes are chosen by their true cost, far below high rate?

Laplace and Gaussian sources of variance 1 are quantized at a price, with steps that are multiples of
sqrt(12 price / ln 2). Codes minimize distortion plus price times bits under a table that is refitted to them until both
agree, and the step is then moved to what suits the codes best. Shown is the cost, distortion over price plus bits,
beyond that of the best multiple.

    python benchmarks/step_rule.py
"""

import math

import numpy as np
from lib.common import Table, finish

ENTRIES = 1 << 16
MULTIPLES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
PRICES = tuple(4.0**-k for k in (6.5, 4.5, 3.5, 2.5, 1.5, 1.0))
ROUNDS = 12
SOURCES = ("Laplace", "Gaussian")


def main() -> None:
    columns = {"source": "", "bits": ".2f", "best multiple": ".1f"}
    columns |= {f"{m:g}": ".4f" for m in MULTIPLES}
    rows = []
    for source in SOURCES:
        x = draw(source)
        rows += [row(source, x, price) for price in PRICES]
    tables = {"step": Table("Excess cost in bits per entry, by multiple of the high-rate step", columns, rows)}
    finish("step_rule", tables, {"entries": ENTRIES, "rounds": ROUNDS}, partial=False, shown=tables)


def draw(source: str) -> np.ndarray:
    """Entries of the source, scaled to variance 1."""
    random = np.random.default_rng(0)
    x = random.laplace(size=ENTRIES) if source == "Laplace" else random.standard_normal(ENTRIES)
    return x / x.std()


def row(source: str, x: np.ndarray, price: float) -> list[object]:
    """One line: bits at multiple 1, the best multiple, and the cost of every multiple over the best one's."""
    step = math.sqrt(12 * price / math.log(2))
    found = {m: quantized(x, m * step, price) for m in MULTIPLES}
    cost = {m: bits + distortion / price for m, (bits, distortion) in found.items()}
    best = min(cost, key=lambda m: cost[m])
    return [source, found[1.0][0], best, *(cost[m] - cost[best] for m in MULTIPLES)]


def quantized(x: np.ndarray, step: float, price: float) -> tuple[float, float]:
    """Bits per entry and distortion, half the mean squared error, of x with codes of least total cost."""
    codes = np.rint(x / step).astype(np.int64)
    for _ in range(ROUNDS):
        values, counts = np.unique(codes, return_counts=True)
        bits = -np.log2(counts / len(codes))
        cost = np.full(int(values[-1] - values[0]) + 3, np.inf)
        cost[values - values[0] + 1] = bits
        low = np.floor(x / step).astype(np.int64)
        candidates = np.stack([low - 1, low, low + 1, low + 2])
        place = np.clip(candidates - values[0] + 1, 0, len(cost) - 1)
        total = 0.5 * (x - step * candidates) ** 2 + price * cost[place]
        codes = np.take_along_axis(candidates, total.argmin(0)[None], 0)[0]
    energy = float((codes * codes).sum())
    fitted = float((codes * x).sum()) / energy if energy else 0.0
    _, counts = np.unique(codes, return_counts=True)
    share = counts / len(codes)
    return float(-(share * np.log2(share)).sum()), float(0.5 * np.mean((x - fitted * codes) ** 2))


if __name__ == "__main__":
    main()
