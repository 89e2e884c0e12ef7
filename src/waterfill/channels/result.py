"""What pruning gives: the smaller network, its sizes, and a table of what became of every family of channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from waterfill.channels.graph.groups import Family
from waterfill.channels.graph.network import OUT
from waterfill.network.channels.sizes import Sizes
from waterfill.runtime.speed import Latency


@dataclass(frozen=True, eq=False)
class Pruned:
    """A network without some of its channels: what `prune_channels` returns.

    Attributes:
        model: the smaller network, of the user's own class, in evaluation mode.
        sizes: of its layers, for `shrink`; files of the model hold them by themselves.
        macs: multiplications of all layers for one input, before and after.
        rows: of the table.
        latency: measured, of the original and the smaller network; empty where no speedup was asked for.
        blocks: names of the modules that went whole; `nn.Identity` stands in their places.
    """

    model: nn.Module
    sizes: Sizes
    macs: tuple[int, int]
    rows: Sequence[Mapping[str, Any]]
    latency: Sequence[Latency] = field(default=())
    blocks: tuple[str, ...] = ()

    @property
    def macs_share(self) -> float:
        """The share of multiplications that is left. No speedup: only a clock tells that."""
        return self.macs[1] / max(1, self.macs[0])

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the original it was, by the median of several runs; None if not measured."""
        return self.latency[-1].speedup if self.latency else None

    def table(self) -> list[dict[str, Any]]:
        """A row for each family of channels that go together, a dict: name (of the layer that makes them), layers,
        groups, left, and the reason why none could go."""
        return [dict(row) for row in self.rows]

    def text(self) -> str:
        """The table and the totals."""
        width = max((len(row["name"]) for row in self.rows), default=4)
        lines = [f"{'channels of':{width}}  {'groups':>6}  {'left':>6}  why not fewer"]
        lines += [f"{row['name']:{width}}  {row['groups']:>6}  {row['left']:>6}  {row['reason']}" for row in self.rows]
        if self.blocks:
            lines.append(f"blocks that went whole: {', '.join(self.blocks)}")
        before, after = self.macs
        lines.append(f"multiplications for one input: {before:,} before, {after:,} after ({self.macs_share:.1%})")
        for row in self.latency:
            low, high = row.spread
            lines.append(
                f"{row.name}, {row.inputs} at once: {row.milliseconds:.3f} ms (quartiles {low:.3f} - {high:.3f}), "
                f"{row.speedup:.2f} times as fast"
            )
        return "\n".join(line.rstrip() for line in lines)


def rows_of(families: Sequence[Family], left: Mapping[int, int]) -> list[dict[str, Any]]:
    """Rows of the table; left: by the number of a family, how many groups stay."""
    return [
        {
            "name": family.name,
            "layers": family.layers,
            "channels": len(family.groups[0].get((family.name, OUT), ())),
            "groups": len(family.groups),
            "left": left.get(number, len(family.groups)),
            "reason": family.reason,
        }
        for number, family in enumerate(families)
    ]
