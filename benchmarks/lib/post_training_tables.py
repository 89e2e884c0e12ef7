"""The tables of `post_training.py`, made from its measurements alone."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from lib.common import Table, claim, claims_table

ORIGINAL = "float32"
GPTQ, GPTQ_CODED, ROUNDING = "GPTQ g128", "GPTQ g128, entropy", "rounding g128"
_OPPONENTS = (GPTQ, GPTQ_CODED, ROUNDING)
_LEVEL = 0.05  # what is likelier than this by chance alone, tells nothing


@dataclass(frozen=True)
class Result:
    """What came of one job: bytes of the file, bits per weight, quality, divergence in nats, seconds to compress.

    inputs: how many there were to calibrate with. better: +1 where more quality is better, else -1. resolution:
    differences of quality up to this are chance. failed: why there is no result. right: where samples are few, a bit
    for each in hexadecimal digits, whether the network was right.
    """

    network: str
    method: str
    bits: float | None
    quick: bool = False
    size: int = 0
    file_bits: float = 0.0
    quality: float = 0.0
    divergence: float | None = None
    seconds: float | None = None
    inputs: int = 0
    better: int = 1
    resolution: float = 0.0
    metric: str = ""
    failed: str = ""
    right: str = ""

    def line(self) -> str:
        """For a terminal, as soon as it is known."""
        what = f"{self.network}, {self.method}" + (f" at {self.bits:g} bits" if self.bits else "")
        told = f"{self.size} bytes, {self.file_bits:.3f} bits, {self.metric} {self.quality:.4f}"
        told += f", divergence {self.divergence:.3g}" if self.divergence is not None else ""
        return f"{what}: {self.failed or told}, {self.seconds or 0:.1f} s"


@dataclass(frozen=True)
class Shown:
    """What the tables are about: the automatic recipe, and points that may be lost by bits."""

    automatic: str
    losses: Mapping[str, Mapping[float, float]]


def tables(results: list[Result], shown: Shown) -> dict[str, Table]:
    """Everything that is written; the claims are made of the rest."""
    found = {
        "quality": quality_table(results, shown),
        "headline": headline_table(results, shown),
        "saved": saved_table(results, shown),
        "paired": paired_table(results, shown),
        "calibration": calibration_table(results),
        "runs": runs_table(results),
    }
    return found | {"claims": claims_of(found, results, shown)}


def quality_table(results: list[Result], shown: Shown) -> Table:
    """A row for every network and rate: ours and every opponent within the same bytes."""
    methods = (shown.automatic, *_OPPONENTS)
    columns = {"network": "", "metric": "", "float32": ".4g", "bits": ".3g"}
    columns |= {f"{side}: quality": ".4g" for side in ("ours", *_OPPONENTS)}
    columns |= {f"{side}: divergence": ".3g" for side in ("ours", *_OPPONENTS)}
    columns |= {"our bytes": ",d", "our seconds": ".0f", **{f"against {name}": "" for name in _OPPONENTS}}
    rows = []
    for original, bits in _cells(results, shown.automatic):
        at = {r.method: r for r in results if (r.network, r.bits) == (original.network, bits) and not r.failed}
        ours = at.get(shown.automatic)
        row = [original.network, original.metric, original.quality, bits]
        row += [at[name].quality if name in at else None for name in methods]
        row += [at[name].divergence if name in at else None for name in methods]
        row += [ours.size if ours else None, ours.seconds if ours else None]
        rows.append(
            row + [verdict(ours, at.get(name)) if _tried(results, original, name, bits) else "-" for name in _OPPONENTS]
        )
    return Table("Quality within the same bytes, calibrated and without training", columns, rows)


def _tried(results: list[Result], original: Result, method: str, bits: float) -> bool:
    """Whether an opponent was asked for these bytes at all; it may have failed."""
    return any((r.network, r.method, r.bits) == (original.network, method, bits) for r in results)


def verdict(ours: Result | None, other: Result | None) -> str:
    """better, equal or WORSE than an opponent, which loses where it has no result in these bytes.

    Equal: the quality is the same up to chance, and our outputs are nearer to the original's; or it is just the same.
    Chance: less than the resolution, or, where samples are few, than a sign test of the samples can tell.
    """
    if ours is None:
        return "WORSE"
    if other is None:
        return "better"
    gain = other.better * (ours.quality - other.quality)
    nearer = ours.divergence is not None and other.divergence is not None and ours.divergence <= other.divergence
    if gain > other.resolution or (gain > 0 and nearer):
        return "better"
    chance = abs(gain) <= other.resolution or _sign_test(*discordant(ours, other)) > _LEVEL
    return "equal" if gain == 0 or (chance and nearer) else "WORSE"


def discordant(ours: Result, other: Result) -> tuple[int, int]:
    """On how many samples only we are right, and only the other; none where samples are not told apart."""
    first, second = (int(result.right or "0", 16) for result in (ours, other))
    return ((first & ~second).bit_count(), (second & ~first).bit_count()) if ours.right and other.right else (0, 0)


def _sign_test(first: int, second: int) -> float:
    """The chance that of as many coins at least so many fall on one side; 0 where there are none to tell by."""
    count = first + second
    if count == 0:
        return 0.0
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(min(first, second) + 1)) / 2**count)


def paired_table(results: list[Result], shown: Shown) -> Table:
    """Where samples are few: on how many of them only one of two networks of the same bytes is right."""
    columns = {"network": "", "bits": ".3g", "opponent": "", "only ours right": "d", "only the opponent's": "d"}
    rows = []
    for original, bits in _cells(results, shown.automatic):
        at = {r.method: r for r in results if (r.network, r.bits) == (original.network, bits) and not r.failed}
        for name in _OPPONENTS:
            if shown.automatic in at and name in at and at[shown.automatic].right and at[name].right:
                pair = discordant(at[shown.automatic], at[name])
                rows.append([original.network, bits, name, *pair, _sign_test(*pair) if any(pair) else 1.0])
    return Table("Samples that one network has right and another not", columns | {"chance of it": ".2g"}, rows)


def headline_table(results: list[Result], shown: Shown) -> Table:
    """What is lost at the rates of the claims."""
    columns = {"network": "", "bits": ".3g", "bytes": ",d", "times smaller": ".1f", "float32": ".2f", "accuracy": ".2f"}
    columns |= {"points lost": ".2f", "may be lost": ".2f", "divergence": ".3g", "seconds": ".0f"}
    rows = []
    for original in _originals(results):
        for run in _of(results, original.network, shown.automatic):
            if original.network in shown.losses and run.bits is not None and run.bits <= 2:
                bar = shown.losses[original.network].get(run.bits)
                lost = original.quality - run.quality
                head = [run.network, run.bits, run.size, original.size / run.size, original.quality, run.quality]
                rows.append([*head, lost, bar, run.divergence, run.seconds])
    return Table("ResNets at the lowest rates", columns, rows)


def saved_table(results: list[Result], shown: Shown) -> Table:
    """For every result of an opponent the bits with which we reach its quality, and its divergence, and the difference.

    Our rates are interpolated linearly in quality, and in the logarithm of the divergence, along the envelope of our
    results: at each the best of it and all lower rates.
    """
    columns = {"network": "", "opponent": "", "its bits": ".3f", "quality": ".4g", "divergence": ".3g"}
    columns |= {"our bits, equal quality": "", "saved": ".2f", "our bits, equal divergence": "", "saved then": ".2f"}
    rows = []
    for original in _originals(results):
        ours = _of(results, original.network, shown.automatic)
        good = [(run.file_bits, original.better * run.quality) for run in ours]
        near = [(run.file_bits, -math.log(max(run.divergence, 1e-12))) for run in ours if run.divergence is not None]
        for name in _OPPONENTS:
            for run in _of(results, original.network, name):
                row = [run.network, name, run.file_bits, run.quality, run.divergence]
                row += _saved(good, original.better * run.quality, run.file_bits)
                row += (
                    _saved(near, -math.log(max(run.divergence, 1e-12)), run.file_bits)
                    if run.divergence is not None
                    else [None, None]
                )
                rows.append(row)
    return Table("Bits per weight saved at equal quality and at equal divergence", columns, rows)


def _saved(curve: list[tuple[float, float]], goal: float, bits: float) -> list[object]:
    """Our bits as text, and how many fewer they are; a bound where our curve does not reach so far."""
    if not curve:
        return [None, None]
    lowest, highest = min(curve)[0], max(curve)[0]
    ours = reach(curve, goal)
    if ours is None:
        return [f"> {highest:.3f}", None]
    return [f"{'<= ' if ours == lowest else ''}{ours:.3f}", bits - ours]


def reach(curve: Iterable[tuple[float, float]], goal: float) -> float | None:
    """The bits at which the envelope of (bits, quality, more is better) reaches a quality; None if it does not."""
    before: tuple[float, float] | None = None
    for bits, quality in sorted(curve):
        if quality >= goal:
            if before is None:
                return bits
            share = (goal - before[1]) / (quality - before[1])
            return before[0] + share * (bits - before[0])
        if before is None or quality >= before[1]:
            before = bits, quality
    return None


def calibration_table(results: list[Result]) -> Table:
    """What each network was calibrated with, or why it was not."""
    rows = [[r.network, r.inputs or None, "" if r.inputs else "no data belong to it"] for r in _originals(results)]
    return Table("Inputs to calibrate with", {"network": "", "inputs": "d", "skipped": ""}, rows)


def runs_table(results: list[Result]) -> Table:
    """Every measurement as it was made."""
    columns = {f.name: "" for f in fields(Result)}
    return Table("All measurements", columns, [list(asdict(result).values()) for result in results])


def claims_of(found: Mapping[str, Table], results: list[Result], shown: Shown) -> Table:
    """What was promised, and whether it holds."""
    claims = []
    for row in found["headline"].rows:
        if row[7] is not None:
            what = f"{row[0]} at {row[1]:g} bits of the whole file: points of accuracy lost"
            claims.append(claim(what, row[6], row[7], ".2f", at_most=True))
    for place, name in enumerate(reversed(_OPPONENTS), 1):
        worse = sum(row[-place] == "WORSE" for row in found["quality"].rows)
        claims.append(claim(f"networks and rates at which {name} is better", worse, 0, "d", at_most=True))
    ahead = sum(_ahead(row, original) for original in _originals(results) for row in found["quality"].rows)
    claims.append(
        claim("comparisons in which an opponent is ahead by count, chance or not", ahead, 0, "d", at_most=True)
    )
    failed = sum(bool(r.failed) for r in results if r.method == shown.automatic)
    claims.append(claim("budgets that were not met", failed, 0, "d", at_most=True))
    return claims_table(claims)


def _ahead(row: list[object], original: Result) -> int:
    """How many opponents have the better quality in a row of the table of qualities, if it is of this network."""
    ours, *others = row[4 : 5 + len(_OPPONENTS)]
    if row[0] != original.network or not isinstance(ours, int | float):
        return 0
    return sum(isinstance(other, int | float) and original.better * (other - ours) > 0 for other in others)


def _originals(results: list[Result]) -> list[Result]:
    return [result for result in results if result.method == ORIGINAL]


def _of(results: list[Result], network: str, method: str) -> list[Result]:
    """What came of one method, by falling rate."""
    found = [r for r in results if (r.network, r.method) == (network, method) and not r.failed]
    return sorted(found, key=lambda r: -r.file_bits)


def _cells(results: list[Result], automatic: str) -> list[tuple[Result, float]]:
    """Originals and the rates at which they were to be compressed."""
    cells = []
    for original in _originals(results):
        rates = {r.bits for r in results if r.network == original.network and r.method == automatic and r.bits}
        cells += [(original, bits) for bits in sorted(rates, reverse=True)]
    return cells
