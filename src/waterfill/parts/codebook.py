"""Codebook: every entry is one of a few levels; the levels and an index per entry are stored."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.codes import matrix
from waterfill.coding.model.density_model import spatial
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import Chain, Codes, Levels, Part, Product, Spec, Sum
from waterfill.parts.clustering import closed_forms, kmeans

MOST_LEVELS = 256
MOST_AXES = 3
_MOST_MULTIPLE = 127  # of its smallest level that a codebook may have to be a grid of integers
_LADDER = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 256)
_FAMILIES = {"binary": (2,), "ternary": (3,), "powers": range(2, MOST_LEVELS + 1)}


@dataclass(frozen=True, eq=False)
class CodebookPart(Part):
    """book: [levels] (float32, ascending). codes: [rows, cols], 0 where the level is the one nearest to zero.

    kernel: the spatial extent behind a channel, or (); a code is predicted from its neighbors there.
    """

    book: np.ndarray
    codes: np.ndarray
    kernel: tuple[int, ...] = ()
    kind: ClassVar[int] = 5

    def dense(self) -> Tensor:
        return torch.from_numpy(self.book[self.places])

    @property
    def places(self) -> np.ndarray:
        """The place in the book of every entry [rows, cols] (int64)."""
        return self.codes.astype(np.int64) + _zero(self.book)

    def with_levels(self, book: np.ndarray, places: np.ndarray) -> "CodebookPart":
        """The part of other levels (float32, ascending), of which entries have those at `places` [rows, cols]."""
        return replace(self, book=book, codes=(places - _zero(book)).astype(np.int16))

    def product(self) -> Product:
        places = torch.from_numpy(self.places.astype(np.uint8))
        return _on_a_grid(self) or Levels(torch.from_numpy(self.book.copy()), places)

    @cached_property
    def _plan(self) -> matrix.Plan:
        return matrix.plan(self.codes, self.kernel)

    def write(self, out: Sink) -> None:
        symmetric = len(self.book) > 1 and np.array_equal(self.book, -self.book[::-1])
        halved = bool((self.book.view(np.uint32) & 0xFFFF == 0).all())
        out.uint(len(self.book) << 2 | int(symmetric) << 1 | int(halved))
        stored = self.book[-(len(self.book) // 2) :] if symmetric else self.book
        out.raw(stored.astype("<f4").view("<u2").reshape(-1, 2)[:, 1 if halved else slice(None)].tobytes())
        if len(self.book) == 1:
            out.claim(self.codes.size)
            return
        out.uint(len(self.kernel))
        for size in self.kernel:
            out.uint(size)
        out.put(self._plan)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        book = _read_book(src)
        if len(book) == 1:
            src.claim(shape[0] * shape[1])
            return cls(shape, book, np.zeros(shape, dtype=np.int8))
        kernel = tuple(src.uint(1 << 20) for _ in range(src.uint(MOST_AXES)))
        if 0 in kernel or shape[1] % math.prod(kernel):
            raise src.fail(f"a kernel {kernel} that does not divide {shape[1]} columns")
        codes = matrix.read(src, *shape, kernel)
        zero = _zero(book)
        if codes.size and (int(codes.min()) < -zero or int(codes.max()) >= len(book) - zero):
            raise src.fail(f"a code outside a codebook of {len(book)} levels")
        return cls(shape, book, codes, kernel)

    def describe(self) -> str:
        return f"{len(self.book)} levels"


def _on_a_grid(part: CodebookPart) -> Product | None:
    """Codes of a codebook whose levels are small multiples of the smallest one, as those of binary and ternary weights
    are; two other levels are their mean and half of their difference."""
    book = part.book
    places = torch.from_numpy(part.places)
    unit = np.abs(book).min(where=book != 0, initial=np.inf)
    multiples = np.rint(book.astype(np.float64) / unit)
    if np.abs(multiples).max() <= _MOST_MULTIPLE and np.array_equal((multiples * unit).astype(np.float32), book):
        return _scaled(torch.from_numpy(multiples.astype(np.int8))[places], unit)
    if len(book) != 2:
        return None
    ones = torch.ones(part.shape, dtype=torch.int8, device="cpu")
    column, row = ones[:, :1].contiguous(), ones[:1].contiguous()
    constant = Chain(_scaled(column, (book[0] + book[1]) / 2), _scaled(row, 1.0))
    return Sum((constant, _scaled(2 * places.to(torch.int8) - 1, (book[1] - book[0]) / 2)))


def _scaled(codes: Tensor, scale: float) -> Codes:
    return Codes(codes, torch.full((len(codes), 1), float(scale), dtype=torch.float32, device="cpu"))


def _read_book(src: Reader) -> np.ndarray:
    """The levels [1 .. 256] (float32), finite and ascending."""
    head = src.uint(MOST_LEVELS << 2 | 3)
    levels, symmetric, halved = head >> 2, head & 2, head & 1
    if levels < (2 if symmetric else 1):
        raise src.fail(f"a codebook of {levels} levels")
    stored = levels // 2 if symmetric else levels
    halves = np.zeros((stored, 2), dtype="<u2")
    data = np.frombuffer(src.raw(stored * (2 if halved else 4)), dtype="<u2")
    halves[:, 1 if halved else slice(None)] = data if halved else data.reshape(-1, 2)
    book = halves.reshape(-1).view("<f4").astype(np.float32)
    if symmetric:
        book = np.concatenate([-book[::-1], np.zeros(levels % 2, dtype=np.float32), book])
    if not (np.isfinite(book).all() and (book[1:] > book[:-1]).all()):
        raise src.fail("the levels of a codebook are not finite and ascending")
    return book


def _zero(book: np.ndarray) -> int:
    """The index of the level nearest to zero, the lower one of two."""
    return int(np.abs(book).argmin())


@dataclass(frozen=True)
class Codebook(Spec):
    """Every entry is one of a few levels; the levels and an index for each entry are stored.

    Args:
        levels: how many, 1 to 256; None for as many as are worth their bits.
        values: None for free levels (exact weighted k-means), "binary" for {-a, a}, "ternary" for {-a, 0, a},
            "powers" for signed powers of two, with zero where `levels` is odd.

    Raises:
        BadRecipe: values that are none of these, or a number of levels that they do not allow.

    Example:
        >>> part = Codebook(levels=16).fit(weight, Importance(), price=1e-4)
    """

    levels: int | None = None
    values: str | None = None

    def __post_init__(self) -> None:
        if self.values is not None and self.values not in _FAMILIES:
            raise BadRecipe(f"Codebook: values={self.values!r} is not one of None, {', '.join(map(repr, _FAMILIES))}")
        if self.levels is None:
            return
        allowed = range(1, MOST_LEVELS + 1) if self.values is None else _FAMILIES[self.values]
        if not isinstance(self.levels, int) or self.levels not in allowed:
            of = f" of values={self.values!r}" if self.values else ""
            raise BadRecipe(
                f"Codebook: levels={self.levels!r}{of} is not an integer from {allowed[0]} to {allowed[-1]}"
            )

    def __repr__(self) -> str:
        given = (("levels", self.levels), ("values", self.values))
        return f"Codebook({', '.join(f'{name}={value!r}' for name, value in given if value is not None)})"

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        rows, cols = target.shape
        x = target.detach().float().numpy().reshape(-1)
        w = importance.entry_weights(rows, cols).numpy().reshape(-1)
        # Only a book whose size was left open lets bits decide; a given one is for kernels, and nearest is best.
        bit_price = price if self.levels is None and self.values in (None, "powers") else 0.0
        book = self._book(x, w, price)
        codes = _assign(x, w, book, bit_price)
        levels = book.levels if self.values else _means(x, w, codes, book.levels)
        book32, codes = _rounded(x, w, codes, levels, price)
        codes = (codes - _zero(book32)).astype(np.int16).reshape(rows, cols)
        return CodebookPart((rows, cols), book32, codes, spatial(cols, importance.kernel))

    def _book(self, x: np.ndarray, w: np.ndarray, price: float) -> kmeans.Book:
        if self.values in ("binary", "ternary"):
            levels = (closed_forms.binary if self.values == "binary" else closed_forms.ternary)(x, w)
            return kmeans.Book(levels, np.zeros(len(levels)), 0.0)
        bins = kmeans.collect(x, w)
        if self.values == "powers":
            return self._powers(bins, float(np.abs(x).max()), price)
        if self.levels is not None:
            *_, best = kmeans.optimal_levels(bins, self.levels)
            return kmeans.Book(best, np.zeros(len(best)), 0.0)
        books = (
            kmeans.refine(bins, levels, price)
            for levels in kmeans.optimal_levels(bins, MOST_LEVELS)
            if len(levels) in (*_LADDER, len(bins.count))
        )
        return _cheapest(books, price)

    def _powers(self, bins: kmeans.Bins, largest: float, price: float) -> kmeans.Book:
        top = int(np.clip(np.frexp(largest)[1], -100, 126)) if largest else 0
        sizes = range(3, 33, 2) if self.levels is None else (self.levels,)
        bit_price = price if self.levels is None else 0.0
        books = [
            kmeans.refine(bins, closed_forms.powers_of_two(top - down, size), bit_price, fixed=True)
            for size, down in product(sizes, range(4))
        ]
        return min(books, key=lambda book: book.cost + 16 * price * len(book.levels))


def _cheapest(books: Iterator[kmeans.Book], price: float) -> kmeans.Book:
    """The codebook of least cost, its own bits included, of a series of growing ones; ends after four worse ones."""
    best, worse = next(books), 0
    for book in books:
        better = book.cost + 32 * price * len(book.levels) < best.cost + 32 * price * len(best.levels)
        best, worse = (book, 0) if better else (best, worse + 1)
        if worse == 4:
            break
    return best


def _assign(x: np.ndarray, w: np.ndarray, book: kmeans.Book, price: float) -> np.ndarray:
    """The level index [n] of least 1/2 w (x - level)^2 + price * bits, among the five levels around each value."""
    levels = book.levels.astype(np.float32)
    near = closed_forms.nearest(x, levels)
    if price == 0.0:
        return near
    bits = (price * book.bits).astype(np.float32)
    best, code = np.full(len(x), np.inf, dtype=np.float32), near
    for offset in (0, -1, 1, -2, 2):
        candidate = np.clip(near + offset, 0, len(levels) - 1)
        cost = 0.5 * w * (x - levels[candidate]) ** 2 + bits[candidate]
        code = np.where(cost < best, candidate, code)
        best = np.minimum(best, cost)
    return code


def _means(x: np.ndarray, w: np.ndarray, codes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Each level [k] moved to the weighted mean of its entries; a level without weight stays."""
    weight = np.bincount(codes, weights=w, minlength=len(levels))
    first = np.bincount(codes, weights=w.astype(np.float64) * x, minlength=len(levels))
    return np.where(weight > 0, first / np.where(weight > 0, weight, 1.0), levels)


def _rounded(
    x: np.ndarray, w: np.ndarray, codes: np.ndarray, levels: np.ndarray, price: float
) -> tuple[np.ndarray, np.ndarray]:
    """The levels that are used as a float32 book, in bfloat16 where that costs less, and the codes [n] into it."""
    book = levels.astype(np.float32) + np.float32(0)  # plus zero: no negative zeros
    half = torch.from_numpy(book).bfloat16().float().numpy()
    extra = 0.5 * float((w * ((x - half[codes]) ** 2 - (x - book[codes]) ** 2)).sum(dtype=np.float64))
    if np.isfinite(half).all() and extra < 16 * price * len(book):
        book = half
    used = np.flatnonzero(np.bincount(codes, minlength=len(book)))
    index = np.zeros(len(book), dtype=np.int64)
    book, index[used] = np.unique(book[used], return_inverse=True)
    return book, index[codes]
