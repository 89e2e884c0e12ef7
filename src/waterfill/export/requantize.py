"""What a runtime takes of a network; weights rounded once more to a form that it holds, only ever when asked for."""

from collections.abc import Callable

import torch
from torch import Tensor

from waterfill.export.how import How
from waterfill.export.source import Source
from waterfill.importance import Importance
from waterfill.model.entry import Entry
from waterfill.network.layout import MATRIX, RAW
from waterfill.part import Part, Product
from waterfill.parts import Quantize


def requantized(part: Part, bits: int, group: int, symmetric: bool = True) -> tuple[Part, float]:
    """Codes of so many bits, a scale for each group of columns, and the relative error that this adds."""
    values = part.dense().float()
    cols = max(values.shape[1], 1)
    made = Quantize(bits=bits, group=min(group, cols), symmetric=symmetric).fit(values, Importance(), 0.0)
    return made, relative_error(made.dense(), values)


def relative_error(made: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, relative to the norm of what was wanted."""
    norm = float(torch.linalg.vector_norm(wanted.double()))
    off = float(torch.linalg.vector_norm(made.double() - wanted.double()))
    return off / norm if norm else (0.0 if off == 0 else float("inf"))


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
