"""Weights rounded once more, to a form that a format holds; only ever when asked for."""

import torch
from torch import Tensor

from waterfill.importance import Importance
from waterfill.part import Part
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
