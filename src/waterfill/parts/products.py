"""What each kind of part is to a kernel."""

import numpy as np
import torch
from torch import Tensor

from waterfill.part import Part, SumPart
from waterfill.parts.codebook import CodebookPart
from waterfill.parts.grouped import GroupedPart
from waterfill.parts.lowrank import LowRankPart
from waterfill.parts.pruning.patterns import Blocks
from waterfill.parts.quantized import QuantizedPart
from waterfill.parts.sparse import SparsePart
from waterfill.product import Chain, Codes, Columns, Entries, Product, Sum, Whole

_MOST_MULTIPLE = 127  # of its smallest level that a codebook may have to be a grid of integers


def product_of(part: Part) -> Product:
    """The product of a part [rows, cols]; its matrix is `part.dense()` up to rounding, and for codes exactly."""
    if isinstance(part, SumPart):
        return Sum(tuple(product_of(term) for term in part.terms))
    if isinstance(part, LowRankPart) and part.factors:
        return Chain(product_of(part.factors[0]), product_of(part.factors[1]))
    if isinstance(part, SparsePart):
        return _sparse(part)
    return _codes(part) or Whole(part.dense().float(), part.describe())


def _codes(part: Part) -> Product | None:
    """The product of a part that consists of codes, if it does."""
    if isinstance(part, QuantizedPart):
        rows, columns = part.scales
        return Codes(part.codes, rows, columns=None if bool((columns == 1).all()) else columns)
    if isinstance(part, GroupedPart):
        return Codes(part.codes, part.scales.float(), part.zeros, group=part.group)
    return _levels(part) if isinstance(part, CodebookPart) else None


def _sparse(part: SparsePart) -> Product:
    by_columns = part.pattern == Blocks(part.shape[0], 1) != Blocks(1, 1)
    if part.values is None or not by_columns:
        return Entries(part.dense())
    return Columns(part.mask[0].nonzero()[:, 0], product_of(part.values), part.shape[1])


def _levels(part: CodebookPart) -> Product | None:
    """A codebook whose levels are small multiples of the smallest one, as those of binary and ternary weights are; two
    other levels are their mean and half of their difference."""
    book = part.book
    unit = np.abs(book).min(where=book != 0, initial=np.inf)
    multiples = np.rint(book.astype(np.float64) / unit)
    if np.abs(multiples).max() <= _MOST_MULTIPLE and np.array_equal((multiples * unit).astype(np.float32), book):
        levels = torch.from_numpy(multiples.astype(np.int8))
        return _on_a_grid(levels[_places(part)], float(unit))
    if len(book) == 2:
        signs = 2 * _places(part).to(torch.int8) - 1
        ones = torch.ones(part.shape, dtype=torch.int8, device="cpu")
        mean, half = (float(np.float32(v)) for v in ((book[0] + book[1]) / 2, (book[1] - book[0]) / 2))
        constant = Chain(_on_a_grid(ones[:, :1].contiguous(), mean), _on_a_grid(ones[:1].contiguous(), 1.0))
        return Sum((constant, _on_a_grid(signs, half)))
    return None


def _on_a_grid(codes: Tensor, scale: float) -> Codes:
    return Codes(codes, torch.full((len(codes), 1), scale, dtype=torch.float32, device="cpu"))


def _places(part: CodebookPart) -> Tensor:
    """The place of each entry's level in the book, [rows, cols] (int64)."""
    zero = int(np.abs(part.book).argmin())
    return torch.from_numpy(part.codes.astype(np.int64)) + zero
