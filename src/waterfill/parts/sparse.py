"""Prune: a few entries are kept, the others are zero; the kept values are a part of any kind."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from waterfill.coding.codes import matrix as coded
from waterfill.coding.stream import Reader, Sink
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import Columns, Entries, Part, Product, Spec, cost, read_part, write_part
from waterfill.parts.leaf import check_leaf, leaf
from waterfill.parts.pruning.criteria import ACTIVATION, AUTO, CRITERIA, HESSIAN, ObsSweep, static, within_rows
from waterfill.parts.pruning.gradual import GradualPruning, prune_groups
from waterfill.parts.pruning.patterns import MOST_CHOICES, Blocks, Groups, Pattern, largest, read_pattern
from waterfill.parts.pruning.refit import refit

_NAMED = ("entry", "rows", "columns")
_SMALLEST = 1e-30
_SCALES = (1.0, 0.5, 2.0)  # of the threshold
_FURTHER = (0.5, 1.5, 5.0, 15.0, 45.0)
_TRIED = 2


@dataclass(frozen=True, eq=False)
class SparsePart(Part):
    """Zero but for the units of `pattern` that `mask` keeps; `values` holds those, None if nothing is kept."""

    pattern: Pattern
    mask: Tensor
    values: Part | None
    kind: ClassVar[int] = 6

    def dense(self) -> Tensor:
        if self.values is None:
            return torch.zeros(self.shape, dtype=torch.float32, device="cpu")
        return self.pattern.scatter(self.values.dense().float(), self.mask, self.shape)

    def product(self) -> Product:
        by_columns = self.pattern == Blocks(self.shape[0], 1) != Blocks(1, 1)
        if self.values is None or not by_columns:
            return Entries(self.dense())
        return Columns(self.mask[0].nonzero()[:, 0], self.values.product(), self.shape[1])

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

    def describe(self) -> str:
        share = float(self.mask.float().mean())
        return f"{share:.3g} kept" + (f", {self.values.describe()}" if self.values is not None else "")


@dataclass(frozen=True)
class Prune(Spec):
    """Keep the entries that matter most; their values are refitted on the support and are a part of their own.

    Args:
        keep: fraction of the units kept, 0 to 1; None for those that lower the distortion by more than price * bits.
        pattern: the units: "entry", "rows", "columns", blocks such as "4x4", or N of M neighbors in a row such as
            "2:4", which goes without `keep`.
        values: the spec of the kept values; None for `Quantize()`.
        criterion: what a unit is worth. "magnitude": w^2. "activation": g A_ii w^2, magnitude times input norm,
            compared within each row where `keep` is given (Wanda, arXiv 2306.11695). "hessian": g w^2 / [A^-1]_ii, the
            cost of leaving it out once the others compensate for it (OBS; SparseGPT, arXiv 2301.00774). "auto":
            g A_ii w^2 over the whole matrix; with a Gram matrix, gradual pruning: the least first, a share at a time,
            the others refitted after each.

    Raises:
        BadRecipe: arguments outside these.

    Example:
        >>> part = Prune(keep=0.1).fit(weight, Importance(), price=1e-4)
    """

    keep: float | None = None
    pattern: str = "entry"
    values: Spec | None = None
    criterion: str = AUTO

    def __post_init__(self) -> None:
        check_leaf("Prune: values", self.values)
        if self.criterion not in CRITERIA:
            raise BadRecipe(f"Prune: criterion={self.criterion!r} is none of {', '.join(CRITERIA)}")
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
        default = {"keep": None, "pattern": "entry", "values": None, "criterion": AUTO}
        given = {name: getattr(self, name) for name in default}
        return f"Prune({', '.join(f'{k}={v!r}' for k, v in given.items() if v != default[k])})"

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        shape = (target.shape[0], target.shape[1])
        pattern: Pattern
        if ":" in self.pattern:
            pattern = groups = Groups(*map(int, self.pattern.split(":")))
            masks = self._groups(groups, target, importance)
        else:
            pattern = blocks = self._blocks(shape)
            masks = self._masks(blocks, target, importance, price)
        different = [mask for i, mask in enumerate(masks) if not any(torch.equal(mask, m) for m in masks[:i])]
        parts = [_fitted((pattern, mask), target, importance, price, leaf(self.values)) for mask in different]
        return min(parts, key=lambda part: cost(part, target, importance, price))

    def may_cost_less(self, target: Tensor, importance: Importance, price: float, least: float) -> bool:
        """Whether columns are to be pruned of which one costs so little that the bits it saves may be worth it."""
        blocks = (
            None if self.keep is not None or ":" in self.pattern else self._blocks((target.shape[0], target.shape[1]))
        )
        whole = blocks is not None and blocks == Blocks(target.shape[0], 1) != Blocks(1, 1)
        if blocks is None or not whole or self.criterion not in (AUTO, HESSIAN):
            return True
        if not importance.correlates(target.shape[1]):
            return True
        gain = ObsSweep(target, importance).first_columns()
        return float(gain.min()) <= _threshold(gain, blocks.size, price)

    def _groups(self, groups: Groups, target: Tensor, importance: Importance) -> list[Tensor]:
        """The mask of an N:M pattern, or two to choose from."""
        if self.criterion == HESSIAN:
            return [ObsSweep(target, importance).groups(groups)]
        if self.criterion == AUTO and importance.correlates(target.shape[1]):
            return [prune_groups(target, importance, groups), ObsSweep(target, importance).groups(groups)]
        return [groups.select(static(target, importance, self.criterion))]

    def _masks(self, blocks: Blocks, target: Tensor, importance: Importance, price: float) -> list[Tensor]:
        """The mask of the share `keep`; without it a few masks to choose from, as bits are only estimated here."""
        gain = blocks.folded(static(target, importance, self.criterion)).sum((2, 3))
        worth = partial(_threshold, size=blocks.size, price=price)
        count = None if self.keep is None else round(self.keep * gain.numel())
        correlated = importance.correlates(target.shape[1])
        if self.criterion == HESSIAN or (self.criterion == AUTO and correlated):
            if blocks == Blocks(target.shape[0], 1) != Blocks(1, 1):
                gain = ObsSweep(target, importance).columns()[None]
            elif self.criterion == AUTO:
                pruning = GradualPruning(target, importance, blocks)
                return [pruning.to(count)] if count is not None else _thinned(pruning, worth, price)
            else:
                sweep = ObsSweep(target, importance)
                if count is not None:
                    return [largest(sweep.share(blocks, count), count)]
                level = worth(sweep.blocks(blocks, worth(gain))[0])
                return [sweep.blocks(blocks, scale * level)[1] for scale in (*_SCALES, math.inf)]
        elif self.criterion == ACTIVATION and count is not None and gain.shape[1] > 1:
            gain = within_rows(gain)
        if count is not None:
            return [largest(gain, count)]
        return [gain > scale * worth(gain) for scale in (*_SCALES, math.inf)]

    def _blocks(self, shape: tuple[int, int]) -> Blocks:
        named = {"entry": (1, 1), "rows": (1, shape[1]), "columns": (shape[0], 1)}
        height, width = named.get(self.pattern) or map(int, self.pattern.split("x"))
        return Blocks(min(height, shape[0]), min(width, shape[1]))


def _threshold(gain: Tensor, size: int, price: float) -> float:
    """The gain above which a unit of `size` entries is worth its bits.

    A value at the water level costs about log2 of its magnitude in steps, and leaves price / (2 ln 2) of distortion; a
    position costs log2((1 - p) / p), where p is the share kept, which the threshold itself decides: a fixed point.
    """
    steps = _in_steps(gain, size, price)
    threshold = 6.0 * size * price
    for _ in range(6):
        kept = gain > threshold
        count = min(max(int(kept.sum()), 1), gain.numel() - 1) or 0.5
        spread = float(steps[kept].mean() - steps[kept].min()) if bool(kept.any()) else 0.0
        bits = math.log2((gain.numel() - count) / count) + size * (1 + math.log2(1 + math.e * spread))
        threshold = max(0.0, price * (bits + size / (2 * math.log(2))))
    return threshold


def _in_steps(gain: Tensor, size: int, price: float) -> Tensor:
    """The root mean square of each unit in steps of the water level."""
    return (gain / size * (math.log(2) / (6 * price))).sqrt()


def _thinned(pruning: GradualPruning, worth: Callable[[Tensor], float], price: float) -> list[Tensor]:
    """The masks of gradual pruning with the lowest estimated costs, and the empty mask.

    A unit's gain is an upper bound of what pruning it costs, as other units compensate for it: so pruning goes on well
    beyond the threshold, and the estimated costs of the masks along the way decide.
    """
    candidates: list[tuple[float, Tensor]] = []
    for scale in (0.0, *_FURTHER):
        mask = pruning.until(worth, scale)
        distortion = pruning.distortion
        if candidates and distortion > min(total for total, _ in candidates):
            break
        candidates.append((distortion + price * _bits(pruning.gain[mask], pruning.units.size, mask, price), mask))
    best = sorted(candidates, key=lambda pair: pair[0])[:_TRIED]
    return [*(mask for _, mask in best), torch.zeros_like(mask)]


def _bits(kept: Tensor, size: int, mask: Tensor, price: float) -> float:
    """About how many bits units of these gains take, and the distortion that stays with them, in bits at the price."""
    if not len(kept):
        return 0.0
    share = min(max(len(kept) / mask.numel(), 1e-9), 1 - 1e-9)
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    value = math.log2(1 + 2 * math.e * float(_in_steps(kept, size, price).mean())) + 1 / (2 * math.log(2))
    return mask.numel() * entropy + len(kept) * size * value


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
        ones = torch.ones(inner, dtype=torch.float32, device="cpu")
        target = refit(target, pattern.scatter(ones, mask, shape) > 0, importance)
    kept = pattern.gather(target, mask).contiguous()
    return SparsePart(shape, pattern, mask, values.fit(kept, _inner(support, importance, shape), price))


def _inner(support: tuple[Pattern, Tensor], importance: Importance, shape: tuple[int, int]) -> Importance:
    """The importance of the values: exact for rows, for columns, and for entries where errors do not correlate."""
    pattern, mask = support
    gram = importance.gram
    if gram is not None and pattern == Blocks(1, shape[1]) and shape[1] > 1:
        return replace(importance, rows=importance.row_weights(shape[0])[mask[:, 0]])
    if gram is not None and pattern == Blocks(shape[0], 1) and len(gram) == shape[1]:
        share = float(gram.diagonal().mean()) / float(gram.diagonal()[mask[0]].mean().clamp_min(_SMALLEST))
        damping = min(1.0, importance.damping * share)  # as much for each column as before
        return Importance(importance.row_weights(shape[0]), gram=gram[mask[0]][:, mask[0]], damping=damping)
    weights = pattern.gather(importance.entry_weights(*shape), mask)
    rows = weights.mean(1)
    return Importance(rows, (weights / rows.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]).mean(0))
