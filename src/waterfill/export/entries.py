"""The tensors of a network that may be held in a small form, under each of their names."""

from collections.abc import Callable

from waterfill.export.how import How
from waterfill.export.requantize import requantized
from waterfill.export.source import Source
from waterfill.model.entry import Entry
from waterfill.network.layout import MATRIX, RAW
from waterfill.part import Product


def entries_of(
    source: Source, how: How, unfit: Callable[[Product], str | None]
) -> tuple[dict[str, Entry], dict[str, float]]:
    """The tensors that are real numbers, under each of their names, and what was lost where one was rounded once more.

    unfit: why a runtime does not multiply from a matrix; such ones are rounded where that was asked for.
    """
    found: dict[str, Entry] = {}
    losses: dict[str, float] = {}
    made: dict[str, Entry] = {}
    for name, own in source.owners.items():
        layout = source.layouts[own]
        if layout.role == RAW or layout.dtype.is_complex or not layout.count:
            continue
        if own not in made:
            made[own] = source.entry(own)
            if how.requantize is not None and layout.role == MATRIX and unfit(made[own].parts[0].product()):
                part, losses[own] = requantized(made[own].parts[0], how.requantize, how.group)
                made[own] = Entry(own, layout, (part,), b"", made[own].reason)
        found[name] = made[own]
        losses |= {name: losses[own]} if own in losses else {}
    return found, losses
