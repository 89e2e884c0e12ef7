"""A report on a compressed network: what became of every tensor, what that costs, and how near the bound it is."""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from waterfill.arithmetic import AsSet, own_arithmetic
from waterfill.errors import BadInput
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.forward import Forward
from waterfill.report.folded import Source
from waterfill.report.page.facts import Facts, Point
from waterfill.report.page.gather import FILE, Wanted, gather
from waterfill.report.page.page import html
from waterfill.report.page.qualities import Run
from waterfill.storage.atomic import AtomicFile, write_whole
from waterfill.storage.paths import check_target
from waterfill.storage.work_directory import temporary_folder

if TYPE_CHECKING:
    from waterfill.report.comparison.rows import Comparison
    from waterfill.report.comparison.sensitivity import Sensitivity


@dataclass(frozen=True)
class Report:
    """What `describe` returns. facts: what it says, as numbers."""

    facts: Facts

    def __repr__(self) -> str:
        listing = self.facts.listing
        return f"Report({self.facts.title}: {listing.size} bytes, {listing.bits:.3f} bits per weight)"

    def html(self) -> str:
        """The page: one text that needs no other file and no network."""
        return html(self.facts)

    def as_json(self) -> dict[str, Any]:
        """All of its numbers, for JSON."""
        return self.facts.as_json()

    def save(self, path: "str | Path", *, force: bool = False) -> tuple[Path, Path]:
        """Write the page, and its numbers beside it under the same name with `.json`; both paths.

        Raises OutputExists, BadInput, OSError.
        """
        page = Path(path)
        if page.suffix == ".json":
            raise BadInput(f"{page} is where the numbers go: name the page, such as {page.with_suffix('.html')}")
        numbers = page.with_suffix(".json")
        check_target(numbers, force)
        with AtomicFile(page, force=force) as out:
            out.file.write(self.html().encode())
            out.finish()
        write_whole(numbers, json.dumps(self.as_json(), indent=1, allow_nan=False).encode())
        return page, numbers

    def _repr_html_(self) -> str:
        """The page in a frame of a notebook."""
        frame = 'sandbox="allow-scripts" width="100%" height="720" style="border:0" title="waterfill report"'
        return f'<iframe {frame} srcdoc="{escape(self.html())}"></iframe>'


def describe(  # noqa: PLR0913 - each is a thing that may be known of the file or not
    compressed: "CompressedModel | str | Path",
    *,
    against: "Source | None" = None,
    batches: Iterable[Any] | None = None,
    network: nn.Module | None = None,
    held_out: Iterable[Any] | None = None,
    forward: Forward | None = None,
    comparison: "Comparison | None" = None,
    sensitivity: "Sensitivity | None" = None,
) -> Report:
    """A report on a compressed network, with as much in it as can be known from what is given.

    Args:
        compressed: a file, or what `compress` returned.
        against: the original: a module, a state dict or a checkpoint. With it the report has errors, the bound, plain
            rounding, the sensitivity of every weight, and weights before and after.
        batches: inputs of the network, as `compress` takes them. With them what errors cost is measured, not assumed,
            and quality too.
        network: a module of the user's own class with the original's weights, where `against` is none.
        held_out: other inputs to measure quality on, (inputs, targets) or inputs; without them it is `batches`.
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.
        comparison: other files of the network, as `compare` returns them, for the curves.
        sensitivity: as `sensitivity` measured it, in place of what the importance predicts.

    Raises:
        VerifyError: an original that is not this file's.
        BadInput: inputs without a network to run them, or without an original.
        CorruptFile: a damaged file.

    Example:
        >>> report.describe("net.wf", against=model, batches=inputs.split(32)).save("report.html")
    """
    run = _run(against, batches, network, held_out, forward)
    with own_arithmetic(), ExitStack() as stack:
        if isinstance(compressed, CompressedModel):
            path = stack.enter_context(temporary_folder()) / "compressed.wf"
            compressed.save(path)
            title = "compressed network"
        else:
            path, title = Path(compressed), Path(compressed).name
        facts = gather(Wanted(str(path), title, against, run))
    if comparison is not None:
        facts = _compared(facts, comparison)
    return Report(facts if sensitivity is None else _measured(facts, sensitivity))


def _run(
    against: "Source | None",
    batches: Iterable[Any] | None,
    network: nn.Module | None,
    held_out: Iterable[Any] | None,
    forward: Forward | None,
) -> Run | None:
    """How the network is run; None without inputs. Raises BadInput."""
    if batches is None:
        if held_out is not None or network is not None:
            raise BadInput("a network and held-out inputs go with batches: give some inputs of the network too")
        return None
    original = network if network is not None else against if isinstance(against, nn.Module) else None
    if against is None or original is None:
        raise BadInput("inputs need the original and a network to run them: give against= a module, or network= too")
    held: Sequence[Any] = () if held_out is None else list(held_out)
    return Run(original, list(batches), held, AsSet.now(forward) if forward is not None else None)


def _compared(facts: Facts, comparison: "Comparison") -> Facts:
    """With the points of other files. Quality is of the comparison's metric, if it has one that was measured here; what
    errors cost is left out where one of the two is measured and the other assumed."""
    others = [row.point() for row in comparison.rows if row.bytes]
    if comparison.measured != facts.measured:
        others = [replace(point, nats=None) for point in others]
    metric = comparison.metric or facts.metric
    own = next((quality.file for quality in facts.quality if quality.metric == metric), None)
    first = [replace(point, quality=own) if point.series == FILE else point for point in facts.points]
    if not first:
        first = [Point(FILE, facts.listing.size, facts.listing.bits)]
    return replace(facts, points=[*first, *others], metric=metric, reference=comparison.original)


def _measured(facts: Facts, sensitivity: "Sensitivity") -> Facts:
    """With the sensitivity that was measured. Raises BadInput where no weight is one of the file's."""
    known = {row.name: row.losses for row in sensitivity.rows}
    if not any(row.item.name in known for row in facts.rows):
        raise BadInput("the sensitivity is that of another network: it names none of the file's tensors")
    rows = [replace(row, sensitivity=known.get(row.item.name, {})) for row in facts.rows]
    return replace(facts, rows=rows, sensitivity_in=sensitivity.unit)
