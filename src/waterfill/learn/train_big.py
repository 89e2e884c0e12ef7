"""Train big, then compress: at equal training compute and equal bytes, which size of a network is best?

Li et al., arXiv 2002.11794: large models learn faster and lose less when they are compressed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from waterfill.compression.allocation.budget import Budget
from waterfill.errors import BadInput, BudgetError
from waterfill.model.compressed import CompressedModel, count_weights
from waterfill.network.layout import layout_of
from waterfill.network.running.forward import Forward, as_deployed, result_of
from waterfill.network.tensors import tensors_of

Train = Callable[[nn.Module, int], Any]
"""(network, steps) -> trains it in place."""
Compress = Callable[[nn.Module, Budget], CompressedModel]
Measure = Callable[[nn.Module], float]
_WIDTH, _HEIGHT, _EDGE = 640, 360, 56
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


@dataclass(frozen=True)
class Point:
    """A network in a file. size: its bytes; quality: as measured. Both are None where the budget cannot be met."""

    network: str
    weights: int
    steps: int
    budget: int
    size: int | None
    quality: float | None


@dataclass(frozen=True)
class Pareto:
    """What a family came to.

    points: a file for each network and budget. trained: by network, the quality before compression. best: by budget,
    the file of the highest quality.
    """

    points: tuple[Point, ...]
    trained: Mapping[str, float]

    @property
    def best(self) -> dict[int, Point]:
        found: dict[int, Point] = {}
        for point in self.points:
            other = found.get(point.budget)
            if point.quality is None or math.isnan(point.quality):
                continue
            if other is None or other.quality is None or point.quality > other.quality:
                found[point.budget] = point
        return found

    def table(self) -> list[dict[str, Any]]:
        """A row for each file: network, weights, steps, budget, size, quality, quality as trained, best."""
        best = set(self.best.values())
        return [vars(p) | {"trained": self.trained[p.network], "best": p in best} for p in self.points]

    def plot(self) -> str:
        """Quality by bytes, a line for each network, as SVG."""
        drawn = [(p.network, float(p.size), p.quality) for p in self.points if p.size and p.quality is not None]
        if not drawn:
            raise BadInput("no budget was met: there is nothing to draw")
        sizes, qualities = [size for _, size, _ in drawn], [quality for _, _, quality in drawn]
        (left, right), (low, high) = _range(sizes), _range(qualities)

        def place(size: float, quality: float) -> str:
            x = _EDGE + (size - left) / (right - left) * (_WIDTH - 2 * _EDGE)
            return f"{x:.1f},{_HEIGHT - _EDGE - (quality - low) / (high - low) * (_HEIGHT - 2 * _EDGE):.1f}"

        lines = []
        for i, name in enumerate(dict.fromkeys(network for network, _, _ in drawn)):
            color = _COLORS[i % len(_COLORS)]
            spots = sorted((size, quality) for network, size, quality in drawn if network == name)
            path = " ".join(place(*spot) for spot in spots)
            lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
            lines += [
                f'<circle cx="{place(*spot).split(",")[0]}" cy="{place(*spot).split(",")[1]}" r="4" fill="{color}"/>'
                for spot in spots
            ]
            label = f'x="{_WIDTH - _EDGE}" y="{20 + 16 * i}" fill="{color}" text-anchor="end"'
            lines.append(f"<text {label}>{escape(name)}</text>")
        axes = [
            f'<text x="{_EDGE}" y="{_HEIGHT - 20}">{left:,.0f} bytes</text>',
            f'<text x="{_WIDTH - _EDGE}" y="{_HEIGHT - 20}" text-anchor="end">{right:,.0f} bytes</text>',
            f'<text x="8" y="{_HEIGHT - _EDGE}">{low:.4g}</text>',
            f'<text x="8" y="{_EDGE}">{high:.4g}</text>',
        ]
        size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13"'
        paper = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', paper, *axes, *lines, "</svg>", ""])


def train_big(  # noqa: PLR0913 - a family, how it is trained and compressed, and to what sizes
    family: Mapping[str, Callable[[], nn.Module]],
    batch: Any,
    *,
    train: Train,
    compute: float,
    budgets: Sequence[int],
    compress: Compress,
    measure: Measure,
    forward: Forward | None = None,
) -> Pareto:
    """Train networks of several sizes for the same compute each, and compress each to the same bytes.

    Args:
        family: by name, what builds a network, such as one of each width or depth.
        batch: one batch as the networks take it, by which a step's compute is counted.
        train: (network, steps) -> trains it in place for so many steps.
        compute: floating-point operations of all forward passes; a larger network gets fewer steps.
        budgets: bytes of files.
        compress: (network, budget) -> compressed; `lambda net, b: waterfill.compress(net, inputs, size=b.size)`.
        measure: (network) -> quality, the higher the better.
        forward: as for `compress`.

    Returns:
        A point for each network and budget.

    Raises:
        BadInput: a family without networks, or compute below one step of the largest.

    Example:
        >>> pareto = train_big(family, x, train=fit, compute=1e12, budgets=[50_000], compress=small, measure=accuracy)
        >>> Path("pareto.svg").write_text(pareto.plot())
    """
    if not family:
        raise BadInput("a family has at least one network; this one has none")
    points, trained = [], {}
    for name, build in family.items():
        network = build()
        steps = int(compute / _operations(network, batch, forward))
        if steps < 1:
            raise BadInput(f"compute={compute:g} is less than one step of {name!r}; allow more")
        train(network, steps)
        network.eval()
        trained[name] = measure(network)
        weights = count_weights((n, layout_of(tuple(t.shape), t.dtype)) for n, t in tensors_of(network)[0].items())
        for budget in budgets:
            try:
                made = compress(network, Budget(size=budget))
            except BudgetError:
                points.append(Point(name, weights, steps, budget, None, None))
                continue
            points.append(Point(name, weights, steps, budget, made.size, measure(made.install(build()).eval())))
    return Pareto(tuple(points), trained)


def _operations(network: nn.Module, batch: Any, forward: Forward | None) -> float:
    """Floating-point operations of one forward pass."""
    with as_deployed(network), FlopCounterMode(display=False) as counter:
        result_of(network, batch, forward)
    found = float(counter.get_total_flops())
    if found == 0:
        raise BadInput("a pass through the network has no operations that PyTorch counts: compute cannot be shared")
    return found


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
