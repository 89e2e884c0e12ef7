"""The equation: fit(target, importance, price) = argmin over P of D(target - P) + price * bits(P).

A `Spec` is a method with its parameters, a `Part` its result for one matrix; none of their kinds in `parts/` is known
by name here. Sums and choices are specs like any other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from waterfill.arithmetic import FitsByOwnArithmetic
from waterfill.coding.codes.plan import Frequencies
from waterfill.coding.stream import Reader, Sink, Tally, Writer
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import kinds
from waterfill.part.product import Product, Sum, Whole

MOST_TERMS = 4


class Spec(FitsByOwnArithmetic, ABC):
    """A method and its parameters, a frozen value whose `repr` is the recipe text. `a + b`: a sum; `a | b`: a choice.

    Example:
        >>> part = (Quantize() + LowRank(rank=4)).fit(weight, Importance(), price=1e-4)
    """

    @abstractmethod
    def fit(self, target: Tensor, importance: Importance, price: float, start: "Part | None" = None) -> "Part":
        """The part of this kind that minimizes distortion + price * bits.

        Args:
            target: the matrix to approximate, [rows, cols] (float32).
            importance: what an error costs, in nats.
            price: nats per bit.
            start: a part found at a higher price, to begin from; a spec may ignore it.

        Raises:
            BadInput: an importance that does not fit the shape of the target.
        """

    def may_cost_less(self, target: Tensor, importance: Importance, price: float, least: float) -> bool:
        """Whether a fit may cost less than `least` nats: a quick look, which says yes where it cannot tell."""
        return True

    @property
    def fixed_rate(self) -> bool:
        """Whether the spec itself sets the rate, so that neither price nor budget is needed."""
        return False

    @final
    def __add__(self, other: "Spec") -> "SumSpec":
        return SumSpec(terms_of(SumSpec, self) + terms_of(SumSpec, other))

    @final
    def __or__(self, other: "Spec") -> "Choice":
        return Choice(terms_of(Choice, self) + terms_of(Choice, other))


def terms_of(kind: "type[SumSpec] | type[Choice]", spec: Spec) -> tuple[Spec, ...]:
    """The terms of a sum or of a choice; any other spec is its own only term."""
    return spec.terms if isinstance(spec, kind) else (spec,)


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """An immutable matrix in compressed form; parts of equal shape and bytes are equal.

    shape: (rows, cols). kind: the number of the class in files; defining a subclass registers it.
    """

    shape: tuple[int, int]
    kind: ClassVar[int]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (kind := cls.__dict__.get("kind")) is not None:
            kinds.register(kind, cls)
        if "__repr__" not in cls.__dict__:  # else `dataclass` makes one that prints tensors
            cls.__repr__ = Part.__repr__  # type: ignore[method-assign]

    @abstractmethod
    def dense(self) -> Tensor:
        """The restored matrix, [rows, cols] (float32; a lossless part keeps its own dtype)."""

    @abstractmethod
    def write(self, out: Sink) -> None:
        """Write everything but kind and shape to `out`, which counts bits (`Tally`) or makes bytes (`Writer`)."""

    @classmethod
    @abstractmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        """The part of this shape that `write` wrote. Raises CorruptFile for bytes that make no part of this kind."""

    @classmethod
    def write_all(cls, parts: Sequence[Self], outs: Sequence[Sink]) -> None:
        """`write` of many parts of this kind, each to its own `out`."""
        for part, out in zip(parts, outs, strict=True):
            part.write(out)

    @classmethod
    def read_all(cls, sources: Sequence[Reader], shapes: Sequence[tuple[int, int]]) -> list[Self]:
        """`read` of many parts of this kind, each from its own source. Raises CorruptFile."""
        return [cls.read(src, shape) for src, shape in zip(sources, shapes, strict=True)]

    def product(self) -> Product:
        """How the matrix multiplies, for kernels: `dense()` up to rounding. By itself, a matrix that none knows."""
        return Whole(self.dense().float(), self.describe())

    @final
    def apply(self, x: Tensor) -> Tensor:
        """x @ dense().T, by `product`: x [..., cols] gives [..., rows], in the dtype of x."""
        return self.product().times(x)

    def children(self) -> "dict[str, Part]":
        """The parts that this one is made of, by role; empty for a leaf."""
        return {}

    def describe(self) -> str:
        """What was chosen, in a few words for a table, such as "rank 8, quantized"; sizes are not part of it."""
        return type(self).__name__.removesuffix("Part").lower()

    def frequencies(self) -> "Frequencies | None":
        """How often each integer code occurs in this part, and how often its density expects it; None without codes."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.shape)}, {self.describe()})"

    @final
    @cached_property
    def bits(self) -> float:
        """Ideal code length of the whole part in bits: kind, side information and codes."""
        write_part(self, tally := Tally())
        return tally.bits

    @final
    def encode(self) -> bytes:
        """The bytes of this part on its own; `decode` with its shape reads them back."""
        write_part(self, out := Writer())
        return out.finish()

    @final
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.shape == other.shape and self.encode() == other.encode()

    @final
    def __hash__(self) -> int:
        return hash((self.shape, self.encode()))


def write_part(part: Part, out: Sink) -> None:
    """Write kind, then content; the reader knows the shape from the place of the part."""
    kinds.write_parts([part], [out])


def read_part(src: Reader, shape: tuple[int, int]) -> Part:
    """The part that `write_part` wrote. Raises CorruptFile, and NewerFormat for a kind that is not known here."""
    return kinds.read_parts([src], [shape])[0]


def cost(part: Part, target: Tensor, importance: Importance, price: float) -> float:
    """D(target - part) + price * bits(part), in nats; D with the damping (`Importance.expected`)."""
    return importance.expected(target - part.dense().to(target.dtype)) + price * part.bits


@dataclass(frozen=True, eq=False)
class SumPart(Part):
    """The sum of up to four parts of one shape, from the first to the last in float32: the same on every machine."""

    terms: tuple[Part, ...]
    kind: ClassVar[int] = 1

    def dense(self) -> Tensor:
        return sum((term.dense().float() for term in self.terms[1:]), self.terms[0].dense().float())

    def product(self) -> Product:
        return Sum(tuple(term.product() for term in self.terms))

    def write(self, out: Sink) -> None:
        out.uint(len(self.terms))
        for term in self.terms:
            write_part(term, out)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        if (count := src.uint(MOST_TERMS)) < 2:
            raise src.fail(f"a sum of {count} terms")
        return cls(shape, tuple(read_part(src, shape) for _ in range(count)))

    def children(self) -> dict[str, Part]:
        return {f"term {i}": term for i, term in enumerate(self.terms)}

    def describe(self) -> str:
        return " + ".join(term.describe() for term in self.terms)


def _without_idle(part: Part, target: Tensor, importance: Importance, price: float) -> Part:
    """A sum without the terms that cost more than they save, the worst dropped first; a single term is no sum."""
    best, least = part, cost(part, target, importance, price)
    terms = list(part.children().values())
    while len(terms) > 1:
        rests = [terms[:i] + terms[i + 1 :] for i in range(len(terms))]
        sums = [rest[0] if len(rest) == 1 else SumPart(part.shape, tuple(rest)) for rest in rests]
        costs = [cost(shorter, target, importance, price) for shorter in sums]
        if min(costs) > least:
            break
        least = min(costs)
        best, terms = sums[costs.index(least)], rests[costs.index(least)]
    return best


@dataclass(frozen=True)
class SumSpec(Spec):
    """`A + B`: parts whose sum approximates the target, found by a sweep of the price from high to low."""

    terms: tuple[Spec, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.terms) <= MOST_TERMS:
            raise BadRecipe(f"a sum has two to {MOST_TERMS} terms, this one has {len(self.terms)}")
        if any(isinstance(term, SumSpec) for term in self.terms):
            raise BadRecipe("a sum inside a sum; write one flat sum")

    @property
    def fixed_rate(self) -> bool:
        return all(term.fixed_rate for term in self.terms)

    def __repr__(self) -> str:
        return " + ".join(f"({term!r})" if isinstance(term, Choice) else repr(term) for term in self.terms)

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        singles = [term.fit(target, importance, price) for term in self.terms]
        best = min(singles, key=lambda part: cost(part, target, importance, price))
        if start is None:
            swept = self._sweep(target, importance, price)
        else:
            terms: list[Part | None] = list(start.terms) if isinstance(start, SumPart) else [start]
            swept = self._alternate(target, importance, price, terms)
        swept = _without_idle(swept, target, importance, price)
        candidates = [swept, *([start] if start is not None else []), best]
        return min(candidates, key=lambda part: cost(part, target, importance, price))

    def _sweep(self, target: Tensor, importance: Importance, price: float) -> Part:
        """Fit the terms at 64, 8 and 1 times the price: at a high price only structure pays (docs/theory.md, *Sums*).

        With a Gram matrix over all columns the term that is best alone at the highest price is fitted first there, and
        last in the later rounds, so that the others can take over what they encode more cheaply.
        """
        terms: list[Part | None] = [None] * len(self.terms)
        order, highest = list(range(len(self.terms))), 64
        if importance.gram is not None and len(importance.gram) == target.shape[1] > importance.positions:
            fits = [term.fit(target, importance, price * highest) for term in self.terms]
            order.sort(key=lambda i: cost(fits[i], target, importance, price * highest))
            terms[order[0]] = fits[order[0]]
            self._alternate(target, importance, price * highest, terms, order[1:])
            order.reverse()
        else:
            self._alternate(target, importance, price * highest, terms, order)
        for multiple in (8, 1):
            swept = self._alternate(target, importance, price * multiple, terms, order)
        return swept

    def _alternate(
        self, target: Tensor, importance: Importance, price: float, terms: list[Part | None], order: Sequence[int] = ()
    ) -> Part:
        """One round over the terms, each fitted to what the others leave; `terms` is updated in place."""
        terms += [None] * (len(self.terms) - len(terms))
        for i in order or range(len(self.terms)):
            others = [term for j, term in enumerate(terms) if j != i and term is not None]
            rest = target - sum((term.dense().float() for term in others), torch.zeros_like(target))
            terms[i] = self.terms[i].fit(rest, importance, price, terms[i])
        return SumPart((target.shape[0], target.shape[1]), tuple(term for term in terms if term is not None))


@dataclass(frozen=True)
class Choice(Spec):
    """`A | B`: whichever is cheaper at the price."""

    terms: tuple[Spec, ...]

    @property
    def fixed_rate(self) -> bool:
        return all(term.fixed_rate for term in self.terms)

    def __repr__(self) -> str:
        return " | ".join(repr(term) for term in self.terms)

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        fits = [term.fit(target, importance, price) for term in self.terms]
        return min(fits, key=lambda part: cost(part, target, importance, price))
