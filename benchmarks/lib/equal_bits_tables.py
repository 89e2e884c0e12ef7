"""Our shares of the bits beside equal ones, made from the measurements of `data_free.py` alone."""

from typing import Any

from lib.common import Table
from lib.data_free_tables import Run

CHANCE = 0.1
"""Divergences that differ by less, relatively, are chance: so much do they scatter between fits of one network."""


def shares_table(runs: list[Run], ours: str, equal: str) -> Table:
    """A row for every network and rate that both were measured at, and how far each moves the outputs."""
    columns = {"network": "", "metric": "", "bits": ".4g", "float32": ".4g", "ours": ".4g", "equal bits": ".4g"}
    columns |= {"our divergence": ".3g", "divergence at equal bits": ".3g"}
    originals = {run.network: run for run in runs if run.recipe == "float32"}
    at = {(run.network, run.bits, run.recipe): run for run in runs if run.bits and not run.failed}
    rows = []
    for (network, bits, recipe), run in sorted(at.items(), key=lambda item: -(item[0][1] or 0)):
        other = at.get((network, bits, equal))
        if recipe == ours and other is not None and network in originals:
            quality = [originals[network].quality, run.quality, other.quality]
            rows.append([network, run.metric, bits, *quality, run.divergence, other.divergence])
    order = {name: place for place, name in enumerate(originals)}
    return Table("Our shares of the bits and equal ones", columns, sorted(rows, key=lambda row: order[row[0]]))


def lost_to_equal_bits(table: Table) -> list[list[Any]]:
    """The rows of a table of shares at which equal bits move the outputs less far, by more than chance."""
    return [row for row in table.rows if row[-1] is not None and row[-1] < (1 - CHANCE) * row[-2]]
