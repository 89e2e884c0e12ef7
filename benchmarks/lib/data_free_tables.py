"""The tables of `data_free.py`, made from its measurements alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields

from lib.common import Table

from waterfill import CompressedModel
from waterfill.coding.codes import matrix
from waterfill.coding.model import fitting
from waterfill.coding.stream import Writer
from waterfill.part import write_part


@dataclass(frozen=True)
class Run:
    """What came of one job: bytes of the file, bits per weight, tally in bytes, quality, divergence in nats.

    better: +1 where more quality is better, else -1. resolution: differences of quality up to this are chance.
    failed: why there is no result.
    """

    network: str
    recipe: str
    bits: float | None
    width: int | None
    quick: bool = False
    size: int = 0
    file_bits: float = 0.0
    tally: float | None = None
    quality: float = 0.0
    divergence: float | None = None
    seconds: float | None = None
    better: int = 1
    resolution: float = 0.0
    metric: str = ""
    failed: str = ""

    def line(self) -> str:
        """For a terminal, as soon as it is known."""
        what = self.recipe or f"rounding to {self.width} bits"
        goal = f" at {self.bits:g} bits" if self.bits else f" at the bytes of rounding to {self.width} bits"
        told = f"{self.size} bytes, {self.file_bits:.3f} bits, {self.metric} {self.quality:.4f}"
        told += f", {self.seconds:.1f} s" if self.seconds else ""
        what += goal if self.recipe and self.recipe != "float32" else ""
        return f"{self.network}, {what}: {self.failed or told}"


def quality_table(runs: list[Run], recipes: Iterable[str]) -> Table:
    """A row for every network and rate: our recipes, and rounding with the next fewer and the next more bytes."""
    columns = {"network": "", "metric": "", "float32": ".4g", "bits": ".3g", **dict.fromkeys(recipes, ".4g")}
    for side in ("fewer", "more"):
        columns |= {f"rounding, {side} bytes: bits": ".3f", f"quality, {side}": ".4g"}
    rows = []
    for original in _originals(runs):
        ours = [run for run in runs if run.network == original.network and run.bits]
        rounded = sorted(_rounded(runs, original.network), key=lambda run: run.size)
        for bits in sorted({run.bits for run in ours if run.bits}, reverse=True):
            at = {run.recipe: run for run in ours if run.bits == bits}
            fewer = [run for run in rounded if run.file_bits <= bits][-1:]
            more = [run for run in rounded if run.file_bits > bits][:1]
            quality = [at[r].quality if r in at and not at[r].failed else None for r in recipes]
            beside = [v for side in (fewer, more) for v in _beside(side)]
            rows.append([original.network, original.metric, original.quality, bits, *quality, *beside])
    return Table("Quality by bits per weight of the whole file, without data or training", columns, rows)


def _beside(side: list[Run]) -> tuple[float | None, float | None]:
    """Bits and quality of the run, if there is one."""
    return (side[0].file_bits, side[0].quality) if side else (None, None)


def equal_bytes_table(runs: list[Run], recipe: str) -> Table:
    """A row for every network and width of rounding: our file of at most its bytes beside it, and which is better."""
    columns = {"network": "", "metric": "", "width": "d", "rounding: bytes": ",d", "our bytes": ",d"}
    columns |= {"rounding: quality": ".4g", "our quality": ".4g"}
    columns |= {"rounding: divergence": ".3g", "our divergence": ".3g", "ours is": ""}
    rows = []
    for original in _originals(runs):
        for plain in sorted(_rounded(runs, original.network), key=lambda run: -run.size):
            found = [r for r in runs if (r.network, r.recipe, r.width) == (plain.network, recipe, plain.width)]
            for ours in found:
                qualities = [plain.quality, None if ours.failed else ours.quality]
                divergences = [plain.divergence, None if ours.failed else ours.divergence]
                sizes = [plain.size, None if ours.failed else ours.size]
                head = [original.network, original.metric, plain.width]
                rows.append([*head, *sizes, *qualities, *divergences, verdict(ours, plain)])
    return Table(f"{recipe} at the bytes of plain rounding in groups of 64", columns, rows)


def verdict(ours: Run, plain: Run) -> str:
    """better, equal or WORSE than rounding.

    Equal: the quality is the same up to chance, and our outputs are nearer to the original's; or it is just the same.
    """
    if ours.failed:
        return "WORSE"
    gain = plain.better * (ours.quality - plain.quality)
    nearer = ours.divergence is not None and plain.divergence is not None and ours.divergence <= plain.divergence
    if gain > plain.resolution or (gain > 0 and nearer):
        return "better"
    return "equal" if gain == 0 or (abs(gain) <= plain.resolution and nearer) else "WORSE"


def sizes_table(runs: list[Run]) -> Table:
    """For every network the file that is furthest from its tally."""
    columns = {"network": "", "recipe": "", "bits": ".3g", "tally, bytes": ",.0f", "file, bytes": ",d"}
    columns |= {"difference, bytes": ",.0f", "%": ".3f", "within 1 % + 64 bytes, all files": ""}
    rows = []
    for original in _originals(runs):
        pairs = [(r, r.tally) for r in runs if r.network == original.network and r.tally is not None]
        if pairs:
            run, tally = max(pairs, key=lambda pair: abs(pair[0].size - pair[1]) / pair[1])
            within = all(abs(r.size - t) <= 0.01 * t + 64 for r, t in pairs)
            away = run.size - tally
            rows.append([run.network, run.recipe, run.file_bits, tally, run.size, away, 100 * away / tally, within])
    return Table("Real size and tally: the worst file of each network", columns, rows)


def runs_table(runs: list[Run]) -> Table:
    """Every measurement as it was made."""
    return Table("All measurements", {f.name: "" for f in fields(Run)}, [list(asdict(run).values()) for run in runs])


def bars(runs: list[Run], recipe: str, wanted: Mapping[float, float]) -> Iterator[tuple[float, float, float]]:
    """(bits, bar, quality found) of ResNet-20, for every bar that was measured."""
    for run in runs:
        if run.network == "ResNet-20" and run.recipe == recipe and run.bits is not None and run.bits in wanted:
            yield run.bits, wanted[run.bits], run.quality


class Split(Writer):
    """A writer that notes how many bytes went into codes, and how many of these describe their densities (ideally)."""

    def __init__(self) -> None:
        super().__init__()
        self.code_bytes = 0
        self.model_bytes = 0.0

    def put(self, plan: matrix.Plan) -> None:
        before = len(self._data)
        super().put(plan)
        self.code_bytes += len(self._data) - before
        model = getattr(plan, "model", None)
        self.model_bytes += fitting.side_bits(model) / 8 if model is not None else 0.0


def breakdown_table(compressed: CompressedModel) -> Table:
    """Where the bytes of a file are; the first row is the weight codes."""
    out, small = Split(), 0
    for entry in compressed.entries.values():
        if entry.reason:
            small += len(entry.blob)
            continue
        for part in entry.parts:
            write_part(part, out)
    blobs = sum(len(entry.blob) for entry in compressed.entries.values())
    rows: list[tuple[str, float]] = [
        ("codes of the weights, with their densities", out.code_bytes),
        ("of these, descriptions of the densities (ideal length)", out.model_bytes),
        ("scales, steps and heads of the weights' parts", blobs - small - out.code_bytes),
        ("small tensors", small),
        ("manifest, names, index, checksums", compressed.size - blobs),
    ]
    columns = {"ResNet-20 at 2 bits per weight": "", "bytes": ",.0f", "% of the file": ".2f"}
    return Table("Where the bytes are", columns, [[what, size, 100 * size / compressed.size] for what, size in rows])


def _originals(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.recipe == "float32"]


def _rounded(runs: list[Run], network: str) -> list[Run]:
    return [run for run in runs if run.network == network and not run.recipe]
