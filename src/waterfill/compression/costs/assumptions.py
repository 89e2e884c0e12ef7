"""The cost of errors in each weight, estimated from the names, shapes and norms of a network where there are no data.

Names only show repeated structure, and their words are never interpreted: `layers.3.` and `layers.4.` are two blocks.
A block with several weights that mix channels is taken to be residual. Its weights are sized for one residual stream,
so that they share the cost of an error in the block nearly in proportion to their entries; and the stream runs through
the weights outside the blocks, an embedding or a head, whose entries then cost no less than those of the blocks. What
the statistics of a norm show is in `amplification` (docs/theory.md, *Without data*).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import torch
from torch import Tensor

from waterfill.compression.allocation.weight import Weight
from waterfill.compression.allocation.without_data import COLUMNS, ROWS, SIZE_EXPONENT
from waterfill.network.layout import KERNEL, MATRIX, STACK, VECTOR, Layout

BLOCK_EXPONENT = 0.7
"""Of two weights in a block, one with k times the entries costs k^BLOCK_EXPONENT times as much (docs/decisions.md)."""
OUTSIDE = 1.5
"""An entry outside of the blocks costs at least so many times what one in the blocks does (docs/decisions.md)."""
_TALL = 4  # a table of tokens has more than so many times as many rows as columns
_MIXING = 2  # weights that mix channels, at least, of a residual block
_MEAN, _VARIANCE = "running_mean", "running_var"
_NORM = (_MEAN, _VARIANCE, "weight")
_NORMALIZED = ((".original1", ".original0"), ("weight_v", "weight_g"))
"""How PyTorch names directions and their magnitudes."""
_EPSILON = 1e-5  # added to a variance, as PyTorch norms do by default
_LEAST_SHARE = 1e-3  # of the median variance; below, a channel is dead
_LEAST, _MOST = 0.1, 30.0  # limits of factors that a norm gives
_TINY = 1e-30


def informed(weights: Sequence[Weight]) -> list[Weight]:
    """All tensors of a network, with the `factor` and the `lines` that follow from their place in it; same order."""
    layouts = {weight.name: weight.layout for weight in weights}
    places, lines = by_place(layouts), by_lines(layouts)
    norms = by_norms(weights)
    factors = [norms.get(weight.name, 1.0) * places.get(weight.name, 1.0) for weight in weights]
    pairs = zip(weights, factors, strict=True)
    return [replace(w, factor=w.factor * factor, lines=lines.get(w.name, "")) for w, factor in pairs]


def by_place(layouts: Mapping[str, Layout]) -> dict[str, float]:
    """By the name of a tensor: its cost, in multiples of the cost that is assumed from its size.

    A vector in a network of blocks costs as much as a weight in them, as it scales or shifts their inputs.
    layouts: of all tensors, by name.
    """
    sizes = {name: math.prod(layout.matrix) for name, layout in layouts.items() if _is_matrix(layout)}
    blocks = _blocks(layouts)
    factors = {}
    for members in blocks:
        typical = _mean_logarithm({name: sizes[name] for name in members}, sizes)
        for name in members:
            away = math.log(sizes[name]) - typical
            factors[name] = math.exp((BLOCK_EXPONENT - SIZE_EXPONENT) * away)
    costs = {name: factors.get(name, 1.0) * size ** (SIZE_EXPONENT - 1) for name, size in sizes.items()}  # an entry's
    if factors:
        entries = {name: layouts[name].entries for name in factors}
        least = OUTSIDE * math.exp(_mean_logarithm({name: costs[name] for name in factors}, entries))
        factors |= {name: max(1.0, least / costs[name]) for name in sizes if name not in factors}
        typical = _mean_logarithm({name: sizes[name] for name in entries}, sizes)
        vectors = {name: layout.entries for name, layout in layouts.items() if layout.role == VECTOR}
        factors |= {name: math.exp(SIZE_EXPONENT * (typical - math.log(size))) for name, size in vectors.items()}
    return factors


def by_lines(layouts: Mapping[str, Layout]) -> dict[str, str]:
    """By name: whether errors count relative to each column or row of a matrix; others are left out.

    Columns for weights that read the residual stream inside a block: some channels of a stream are many times as large
    as others, and training made their weights small. Rows for a table outside: each belongs to a token, read by itself;
    and for what is divided by the norms of its rows before it is used.
    layouts: of all tensors, by name.
    """
    lines: dict[str, str] = {}
    widths = set()
    for members in _blocks(layouts):
        plain = [name for name in members if not layouts[name].kernel]
        sides = Counter(side for name in plain for side in set(layouts[name].matrix))
        width = max(sides, key=lambda side: sides[side], default=0)
        lines |= {name: COLUMNS for name in plain if layouts[name].matrix[1] == width}
        widths.add(width)
    outside = {name: layout.matrix for name, layout in layouts.items() if _is_matrix(layout) and name not in lines}
    tables = {name for name, (rows, cols) in outside.items() if cols in widths and rows > _TALL * cols}
    return lines | dict.fromkeys(tables, ROWS) | dict.fromkeys(_directions(layouts), ROWS)


def _directions(layouts: Mapping[str, Layout]) -> list[str]:
    """Weights whose rows are divided by their norms: beside them PyTorch's weight normalization keeps a magnitude."""
    found = []
    for own, other in _NORMALIZED:
        directions = [name for name, layout in layouts.items() if name.endswith(own) and _is_matrix(layout)]
        found += [name for name in directions if name.removesuffix(own) + other in layouts]
    return found


def _mean_logarithm(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of the logarithms of some values."""
    return math.fsum(weights[n] * math.log(v) for n, v in values.items()) / math.fsum(weights[n] for n in values)


def _blocks(layouts: Mapping[str, Layout]) -> list[list[str]]:
    """The names of the weights that mix channels, block by block, of repeated blocks with several such weights."""
    members: dict[str, list[str]] = defaultdict(list)
    for name, layout in layouts.items():
        if _is_matrix(layout) and _mixes(layout):
            members[_block(name)].append(name)
    stacks: dict[str, list[str]] = defaultdict(list)
    for block, names in members.items():
        if block and len(names) >= _MIXING:
            stacks[re.sub(r"\d+", "#", block)].append(block)
    return [members[block] for alike in stacks.values() if len(alike) > 1 for block in alike]


def _block(name: str) -> str:
    """The name up to its last part that is a number, `a.0.b.3` of `a.0.b.3.c.weight`; empty where there is none."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[: last + 1])


def _is_matrix(layout: Layout) -> bool:
    return layout.role in (MATRIX, KERNEL, STACK)


def _mixes(layout: Layout) -> bool:
    """Whether an output depends on more than one input channel."""
    return layout.matrix[1] > math.prod(layout.kernel)


def by_norms(weights: Sequence[Weight]) -> dict[str, float]:
    """By name: factors of the assumed cost of a relative error, from norms with statistics.

    For a norm's own vectors, and for the weight whose outputs it reads; both have the same parent in their names.
    weights: all tensors of a network.
    """
    named = {weight.name: weight for weight in weights}
    factors: dict[str, float] = {}
    for prefix in [name.removesuffix(f".{_VARIANCE}") for name in named if name.endswith(f".{_VARIANCE}")]:
        own = {part: named[f"{prefix}.{part}"] for part in (*_NORM, "bias") if f"{prefix}.{part}" in named}
        values = {part: weight.load().detach().double().reshape(-1) for part, weight in own.items()}
        if not set(_NORM) <= set(values) or len({len(vector) for vector in values.values()}) > 1:
            continue
        mean, variance, scale = (values[part] for part in _NORM)
        grown = amplification(mean, variance, scale)
        shift = values.get("bias", torch.zeros(1, dtype=torch.float64, device="cpu"))
        energy = float(shift.square().sum() / scale.square().sum().clamp_min(_TINY))
        shares = {"bias": energy, _MEAN: grown - 1, _VARIANCE: 0.25}  # the root of a variance errs by half as much
        factors |= {f"{prefix}.{part}": min(max(shares[part], _LEAST), _MOST) for part in shares if part in own}
        before = _before(prefix, variance, weights)
        factors |= {before: grown} if before else {}
    return factors


def amplification(mean: Tensor, variance: Tensor, scale: Tensor) -> float:
    """The factor by which the squared relative error of a layer's outputs grows in a norm.

    A norm subtracts the mean, which is part of the energy of its inputs: in one channel the squared relative error
    grows by 1 + mean^2 / variance, and scale^2 is the share of the channel in the energy of the outputs.
    mean, variance: of the inputs, [channels]. scale: [channels].
    """
    least = _LEAST_SHARE * float(variance.median()) + _EPSILON
    shares = scale.square()
    grown = float((shares * (mean.square() / variance.clamp_min(least))).sum() / shares.sum().clamp_min(_TINY))
    return 1 + min(grown, _MOST) if math.isfinite(grown) else 1.0


def _before(prefix: str, variance: Tensor, weights: Sequence[Weight]) -> str | None:
    """The name of the weight whose outputs a norm reads.

    Of those beside it with as many rows, the one that shares most of its name; among several such, the one whose rows'
    energies correlate most with the variances.
    """
    parent = prefix.rpartition(".")[0]
    beside = [
        weight
        for weight in weights
        if weight.layout.role in (MATRIX, KERNEL)
        and weight.name.rpartition(".")[0].rpartition(".")[0] == parent
        and weight.layout.matrix[0] == len(variance)
    ]
    shared = [_shared(weight.name, prefix) for weight in beside]
    nearest = [weight for weight, count in zip(beside, shared, strict=True) if count == max(shared)]
    if len(nearest) < 2:
        return nearest[0].name if nearest else None
    return max(nearest, key=lambda weight: _agreement(weight, variance)).name


def _shared(first: str, second: str) -> int:
    """How many characters two names begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _agreement(weight: Weight, variance: Tensor) -> float:
    """The correlation of the logarithms of the rows' energies and of the variances [rows]."""
    energies = weight.layout.split(weight.load())[0].double().square().sum(1)
    pairs = torch.stack([energies, variance]).clamp_min(1e-30).log()
    return float(torch.nan_to_num(torch.corrcoef(pairs)[0, 1]))
