"""Prune: a few entries are kept, the others are zero; the kept values are a part of any kind."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from waterfill.coding import matrix as coded
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import Part, Spec, cost, read_part, write_part
from waterfill.parts.leaf import check_leaf, leaf
from waterfill.parts.metric import column_weights, entry_weights, row_weights, times_gram
from waterfill.parts.support import MOST_CHOICES, Blocks, Groups, Pattern, read_pattern

_NAMED = ("entry", "rows", "columns")
_MOST_STEPS = 48


@dataclass(frozen=True, eq=False)
class SparsePart(Part):
    """Zero but for the units of `pattern` that `mask` keeps; `values` holds those, None if nothing is kept."""

    pattern: Pattern
    mask: Tensor
    values: Part | None
    kind: ClassVar[int] = 6

    def dense(self) -> Tensor:
        if self.values is None:
            return torch.zeros(self.shape)
        return self.pattern.scatter(self.values.dense().float(), self.mask, self.shape)

    @cached_property
    def _plan(self) -> coded.Plan:
        return self.pattern.plan(self.mask)

    def write(self, out: Sink) -> None:
        self.pattern.write(self.mask, self._plan, out)
        out.claim(self.shape[0] * self.shape[1])
        if self.values is not None:
            write_part(self.values, out)

    @classmethod
    def read(cls, src: Reader, shape: tuple[int, int]) -> Self:
        pattern, mask = read_pattern(src, shape)
        src.claim(shape[0] * shape[1])
        kept = pattern.values_shape(mask, shape)
        return cls(shape, pattern, mask, read_part(src, kept) if math.prod(kept) else None)

    def children(self) -> dict[str, Part]:
        return {} if self.values is None else {"values": self.values}

    def rebuilt(self, children: dict[str, Part]) -> Part:
        return SparsePart(self.shape, self.pattern, self.mask, children.get("values"))

    def describe(self) -> str:
        share = float(self.mask.float().mean())
        return f"{share:.3g} kept" + (f", {self.values.describe()}" if self.values is not None else "")


@dataclass(frozen=True)
class Prune(Spec):
    """Keep the entries that matter most; their values are refitted on the support and are a part of their own.

    keep: fraction of the units kept, exactly; None: those that lower the distortion by more than price * their bits.
    pattern: "entry", "rows", "columns", blocks such as "4x4", or N of M neighbors in a row such as "2:4".
    values: what the kept values are made of; None: the default leaf.
    A unit's worth is 1/2 g A_ii w^2: magnitude, or with data magnitude times input norm (arXiv 2306.11695).
    """

    keep: float | None = None
    pattern: str = "entry"
    values: Spec | None = None

    def __post_init__(self) -> None:
        check_leaf("Prune: values", self.values)
        if self.keep is not None and not (isinstance(self.keep, int | float) and 0 <= self.keep <= 1):
            raise BadRecipe(f"Prune: keep={self.keep!r} is not a fraction from 0 to 1")
        blocks, groups = (re.fullmatch(form, str(self.pattern)) for form in (r"(\d+)x(\d+)", r"(\d+):(\d+)"))
        if not (self.pattern in _NAMED or blocks or groups) or (blocks and "0" in blocks.groups()):
            raise BadRecipe(f"Prune: pattern={self.pattern!r} is none of {', '.join(_NAMED)}, 4x4, 2:4 and the like")
        if groups:
            kept, size = map(int, groups.groups())
            if not (0 < kept < size <= 16 and math.comb(size, kept) <= MOST_CHOICES):
                raise BadRecipe(f"Prune: {self.pattern} needs 0 < N < M with at most {MOST_CHOICES} combinations")
            if self.keep is not None:
                raise BadRecipe(f"Prune: pattern {self.pattern} says how many are kept; leave out keep={self.keep}")

    def __repr__(self) -> str:
        default = {"keep": None, "pattern": "entry", "values": None}
        given = {name: getattr(self, name) for name in default}
        return f"Prune({', '.join(f'{k}={v!r}' for k, v in given.items() if v != default[k])})"

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        shape = (target.shape[0], target.shape[1])
        gain = 0.5 * target.square() * entry_weights(importance, *shape)
        if ":" in self.pattern:
            groups = Groups(*map(int, self.pattern.split(":")))
            return _fitted((groups, groups.select(gain)), target, importance, price, leaf(self.values))
        blocks = self._blocks(shape)
        gain = blocks.folded(gain).sum((2, 3))
        if self.keep is not None:
            masks = [_largest(gain, round(self.keep * gain.numel()))]
        else:
            masks = _worthwhile(gain, blocks.height * blocks.width, price)
        parts = [_fitted((blocks, mask), target, importance, price, leaf(self.values)) for mask in masks]
        return min(parts, key=lambda part: cost(part, target, importance, price))

    def _blocks(self, shape: tuple[int, int]) -> Blocks:
        named = {"entry": (1, 1), "rows": (1, shape[1]), "columns": (shape[0], 1)}
        height, width = named.get(self.pattern) or map(int, self.pattern.split("x"))
        return Blocks(min(height, shape[0]), min(width, shape[1]))


def _largest(gain: Tensor, count: int) -> Tensor:
    """The mask of the `count` largest of gain, the earlier of equal ones."""
    if count == 0:
        return torch.zeros(gain.shape, dtype=torch.bool)
    flat = gain.reshape(-1)
    threshold = torch.kthvalue(flat, len(flat) - count + 1).values
    mask = flat > threshold
    ties = torch.nonzero(flat == threshold)[: count - int(mask.sum()), 0]
    mask[ties] = True
    return mask.reshape(gain.shape)


def _worthwhile(gain: Tensor, size: int, price: float) -> list[Tensor]:
    """Masks of the units [of `size` entries] whose gain is more than price * bits; a few, as the bits are estimates.

    A value at the water level costs about log2 of its magnitude in steps, and leaves price / (2 ln 2) of distortion; a
    position costs log2((1 - p) / p), where p is the share kept, which the threshold itself decides: a fixed point.
    """
    steps = (gain / size * (math.log(2) / (6 * price))).sqrt()
    threshold = 6.0 * size * price
    for _ in range(6):
        kept = gain > threshold
        count = min(max(int(kept.sum()), 1), gain.numel() - 1) or 0.5
        spread = float(steps[kept].mean() - steps[kept].min()) if bool(kept.any()) else 0.0
        bits = math.log2((gain.numel() - count) / count) + size * (1 + math.log2(1 + math.e * spread))
        threshold = max(0.0, price * (bits + size / (2 * math.log(2))))
    return [gain > scale * threshold for scale in (1.0, 0.5, 2.0)] + [torch.zeros_like(kept)]


def _fitted(
    support: tuple[Pattern, Tensor], target: Tensor, importance: Importance, price: float, values: Spec
) -> Part:
    """The part on a given support (pattern, mask), its values refitted where errors correlate."""
    pattern, mask = support
    shape = (target.shape[0], target.shape[1])
    inner = pattern.values_shape(mask, shape)
    if not math.prod(inner):
        return SparsePart(shape, pattern, mask, None)
    if importance.gram is not None:
        target = refit(target, pattern.scatter(torch.ones(inner), mask, shape) > 0, importance)
    kept = pattern.gather(target, mask).contiguous()
    return SparsePart(shape, pattern, mask, values.fit(kept, _inner(support, importance, shape), price))


def _inner(support: tuple[Pattern, Tensor], importance: Importance, shape: tuple[int, int]) -> Importance:
    """What an error of the values costs: exact for rows, for columns, and for entries where errors do not correlate."""
    pattern, mask = support
    gram = importance.gram
    if gram is not None and pattern == Blocks(1, shape[1]) and shape[1] > 1:
        return Importance(row_weights(importance, shape[0])[mask[:, 0]], importance.diagonal, gram, importance.kernel)
    if gram is not None and pattern == Blocks(shape[0], 1) and len(gram) == shape[1]:
        return Importance(row_weights(importance, shape[0]), gram=gram[mask[0]][:, mask[0]])
    weights = pattern.gather(entry_weights(importance, *shape), mask)
    rows = weights.mean(1)
    return Importance(rows, (weights / rows.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]).mean(0))


def refit(target: Tensor, support: Tensor, importance: Importance) -> Tensor:
    """The matrix [rows, cols] on `support` (bool) nearest to `target` under the importance.

    Row by row the normal equations A_SS v_S = (A w)_S, solved for all rows at once by conjugate gradients with the
    diagonal of A as preconditioner; every step lowers the distortion, so stopping early is safe.
    """
    wide = target.double() if target.numel() <= 1 << 20 else target
    scale = column_weights(importance, target.shape[1]).to(wide).clamp_min(torch.finfo(torch.float32).tiny)
    fitted = wide * support
    residual = times_gram(importance, wide - fitted) * support
    direction = residual / scale
    energy = (residual * direction).sum(1)
    first = energy
    for _ in range(_MOST_STEPS):
        if bool((energy <= 1e-10 * first).all()):
            break
        image = times_gram(importance, direction) * support
        length = _ratio(energy, (direction * image).sum(1))
        fitted = fitted + length[:, None] * direction
        residual = residual - length[:, None] * image
        following = (residual * residual / scale).sum(1)
        direction = residual / scale + _ratio(following, energy)[:, None] * direction
        energy = following
    return fitted.to(target.dtype)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and zero where b vanishes: a row that is solved stays as it is."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)
