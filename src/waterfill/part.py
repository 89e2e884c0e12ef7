"""The equation: fit(target, importance, price) = argmin over P of D(target - P) + price * bits(P).

A `Spec` says what to look for, a `Part` is what was found. Kinds of parts live one to a file in `parts/`; this module
knows none of them by name. Sums and choices are specs like any other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from waterfill.arithmetic import FitsByOwnArithmetic
from waterfill.coding.stream import Reader, Sink, Tally, Writer
from waterfill.errors import BadRecipe, NewerFormat
from waterfill.importance import Importance

MOST_TERMS = 4
MOST_NESTED = 8
_KINDS: dict[int, type["Part"]] = {}


class Spec(FitsByOwnArithmetic, ABC):
    """What to look for: a frozen value whose `repr` is the recipe text."""

    @abstractmethod
    def fit(self, target: Tensor, importance: Importance, price: float, start: "Part | None" = None) -> "Part":
        """The part of this kind that is cheapest for `target` [rows, cols] (float32) at `price` (nats per bit).

        `start` is a part found at a higher price, to begin from; a spec may ignore it.
        """

    @property
    def fixed_rate(self) -> bool:
        """Whether the rate is given by the spec itself, so that no price or budget is needed."""
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
    """What was found: an immutable matrix in compressed form. Equal parts are those that write equal bytes."""

    shape: tuple[int, int]
    kind: ClassVar[int]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = cls.__dict__.get("kind")
        if kind is not None and _KINDS.setdefault(kind, cls).__qualname__ != cls.__qualname__:
            raise TypeError(f"part kind {kind} of {cls.__name__} is taken by {_KINDS[kind].__name__}")
        if "__repr__" not in cls.__dict__:  # else `dataclass` makes one that prints tensors
            cls.__repr__ = Part.__repr__  # type: ignore[method-assign]

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix [rows, cols], float32 (a lossless part keeps its own dtype)."""

    @abstractmethod
    def write(self, out: Sink) -> None:
        """Put everything but kind and shape into `out`, with the verbs of `Sink`."""

    @classmethod
    @abstractmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        """The part that `write` wrote. Raises CorruptFile."""

    def apply(self, x: Tensor) -> Tensor:
        """x [..., cols] times the matrix transposed: [..., rows]."""
        return x @ self.dense().to(x.dtype).T

    def children(self) -> "dict[str, Part]":
        """The parts inside this one, by role; none for a leaf."""
        return {}

    def describe(self) -> str:
        """A few words for a table: what was chosen, not how large it is."""
        return type(self).__name__.removesuffix("Part").lower()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.shape)}, {self.describe()})"

    @final
    @cached_property
    def bits(self) -> float:
        """Ideal bits of the whole part: kind, side information and codes."""
        tally = Tally()
        write_part(self, tally)
        return tally.bits

    @final
    def breakdown(self) -> dict[str, float]:
        """Bits by role: those of each child part, and `self` for the rest."""
        inner = {role: part.bits for role, part in self.children().items()}
        return inner | {"self": self.bits - sum(inner.values())}

    @final
    def encode(self) -> bytes:
        """The bytes of this part as a blob of its own."""
        out = Writer()
        write_part(self, out)
        return out.finish()

    @final
    def map(self, f: "Callable[[Part], Part]") -> "Part":
        """f of this part, after f of the parts inside it."""
        return f(self.rebuilt({role: part.map(f) for role, part in self.children().items()}))

    def rebuilt(self, children: "dict[str, Part]") -> "Part":
        """This part with other parts inside; a leaf is itself."""
        return self

    @final
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.shape == other.shape and self.encode() == other.encode()

    @final
    def __hash__(self) -> int:
        return hash((self.shape, self.encode()))


def write_part(part: Part, out: Sink) -> None:
    """Kind, then content; the reader knows the shape from the place where the part stands."""
    out.uint(part.kind)
    part.write(out)


def read_part(src: Reader, shape: tuple[int, int]) -> Part:
    """The part that `write_part` wrote. Raises CorruptFile, and NewerFormat for a kind that is not known here."""
    kind = src.uint(1 << 30)
    if kind not in _KINDS:
        raise NewerFormat(f"part kind {kind} is not known to this release; a newer waterfill wrote this file")
    src.depth += 1
    if src.depth > MOST_NESTED:
        raise src.fail(f"parts inside parts, more than {MOST_NESTED} deep")
    part = _KINDS[kind].read(src, shape)
    src.depth -= 1
    return part


def decode(data: bytes, shape: tuple[int, int], what: str = "blob") -> Part:
    """The part of `Part.encode`, which must fill `data` exactly. Raises CorruptFile, NewerFormat."""
    src = Reader(data, what)
    part = read_part(src, shape)
    src.end()
    return part


def cost(part: Part, target: Tensor, importance: Importance, price: float) -> float:
    """D(target - part) + price * bits(part), nats; D as it is to be expected on other inputs."""
    return importance.expected(target - part.dense().to(target.dtype)) + price * part.bits


@dataclass(frozen=True, eq=False)
class SumPart(Part):
    """The sum of up to four parts of one shape, from the first to the last in float32: the same on every machine."""

    terms: tuple[Part, ...]
    kind: ClassVar[int] = 1

    def dense(self) -> Tensor:
        return sum((term.dense().float() for term in self.terms[1:]), self.terms[0].dense().float())

    def apply(self, x: Tensor) -> Tensor:
        return torch.stack([term.apply(x) for term in self.terms]).sum(0)

    def write(self, out: Sink) -> None:
        out.uint(len(self.terms))
        for term in self.terms:
            write_part(term, out)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        count = src.uint(MOST_TERMS)
        if count < 2:
            raise src.fail(f"a sum of {count} terms")
        return cls(shape, tuple(read_part(src, shape) for _ in range(count)))

    def children(self) -> dict[str, Part]:
        return {f"term {i}": term for i, term in enumerate(self.terms)}

    def rebuilt(self, children: dict[str, Part]) -> Part:
        return SumPart(self.shape, tuple(children.values()))

    def describe(self) -> str:
        return " + ".join(term.describe() for term in self.terms)


def _without_idle(part: Part, target: Tensor, importance: Importance, price: float) -> Part:
    """A sum less the terms that cost more than they save, the worst first; one term that is left stands alone."""
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
    """`A + B`: parts whose sum approximates the target, found by a sweep of the price from dear to cheap."""

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
        """When bits are dear only structure is worth buying, so structure is bought first (docs/theory.md, *Sums*).

        With data on how inputs correlate, the terms that are best alone at the highest price go first there; later the
        others do, each round, so that a later term can take back what it encodes more cheaply.
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
        shape = (target.shape[0], target.shape[1])
        return SumPart(shape, tuple(term for term in terms if term is not None))


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
