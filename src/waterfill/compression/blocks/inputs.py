"""The inputs that the weights of a block get in the original network and in the compressed one, stage by stage."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from waterfill.calibration.combine import with_grams
from waterfill.compression.steps.compensate import DriftMoments
from waterfill.compression.steps.recorded import AllRecorded, InputRecorder, Recorded
from waterfill.importance import Importance
from waterfill.network.layout import MATRIX, Layout
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightViews

_MOST_STAGES = 12
_BATCHES_HALVED = 4  # fewer batches are each cut in two, so that there are two halves of the inputs


@dataclass(frozen=True)
class Stage:
    """Weights of a block that are fitted at once. uses: by name, how often each is used. groups: the names of those
    with the same inputs, for which one Gram matrix is summed."""

    uses: Mapping[str, int]
    groups: tuple[tuple[str, ...], ...]


def recorded(
    module: nn.Module, layouts: Mapping[str, Layout], run: Callable[[], object], uses: Mapping[str, int] | None = None
) -> tuple[list[Recorded], dict[str, int]]:
    """The inputs of the weights that a run uses, and how often it uses each, in order.

    uses: only of these, after which the rest of it need not run.
    """
    names = layouts if uses is None else uses
    recorder = InputRecorder(layouts, names, None if uses is None else sum(uses.values()))
    weights = {name: v for name, v in module.state_dict(keep_vars=True).items() if name in layouts}
    with Tracer(WeightViews(weights, layouts), recorder), suppress(AllRecorded):
        run()
    return recorder.recorded, recorder.order


def stages_of(found: Sequence[Recorded], order: Mapping[str, int], layouts: Mapping[str, Layout]) -> list[Stage]:
    """The weights of a block in the order in which they run; those with the same inputs, one after the other, at once.

    Where that gives very many stages, as with experts in a loop, neighbors are joined.
    """
    inputs: dict[str, int] = {}
    for one in found:
        inputs.setdefault(one.view.name, id(one.x))
    groups: list[list[str]] = []
    for name in order:
        measured = _is_measured(layouts[name])
        last = groups[-1][-1] if groups else None
        if measured and last is not None and name in inputs and inputs.get(last) == inputs[name]:
            groups[-1].append(name)
        else:
            groups.append([name])
    each = max(1, -(-len(groups) // _MOST_STAGES))
    joined = [groups[i : i + each] for i in range(0, len(groups), each)]
    return [Stage({name: order[name] for group in some for name in group}, tuple(map(tuple, some))) for some in joined]


def _is_measured(layout: Layout) -> bool:
    return layout.role == MATRIX


@dataclass(frozen=True, eq=False)
class GroupMoments:
    """The moments of the inputs of weights that have the same ones."""

    sums: DriftMoments

    @classmethod
    def new(cls) -> "GroupMoments":
        return cls(DriftMoments())

    def add(self, before: Tensor, after: Tensor, half: int | None) -> None:
        """Add the inputs [..., cols] of a batch in the original and in the compressed network.

        half: of the inputs, that the batch belongs to; None to cut it in two.
        """
        before, after = (x.reshape(-1, x.shape[-1]).float() for x in (before, after))
        cut = len(after) // 2
        parts = {0: slice(None, cut), 1: slice(cut, None)} if half is None else {half: slice(None)}
        for i, part in parts.items():
            now = after[part]
            drift = before[part] - now if before.shape == after.shape else torch.zeros_like(now)
            self.sums.add_to(i, (now.mT @ now)[None], (drift.mT @ now)[None], len(now))

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self.sums.own[0].device if self.sums.own else torch.device("cpu")

    def target(self, weight: Tensor) -> Tensor:
        """The matrix [rows, cols] to approximate instead of `weight`."""
        if not self.sums.own:
            return weight
        step = self.sums.step(weight[None])[0]
        return weight + step if bool(torch.isfinite(step).all()) else weight

    def importance(self) -> Importance | None:
        """The importance with equal rows and the Gram matrix of the inputs in the compressed network; None for none."""
        if not self.sums.count:
            return None
        own, counts = self.sums.own, self.sums.counts
        means = [own[i][0] / max(1, counts[i]) for i in range(2)] + [(own[0][0] + own[1][0]) / sum(counts)]
        if not float(means[2].diagonal().sum()) > 0:
            return None
        return with_grams(Importance(), [mean.cpu() for mean in means], sum(counts), 0 not in counts)


def half_of(batch: int, batches: int) -> int | None:
    """The half of the inputs that a batch belongs to; None where it is cut in two."""
    return batch % 2 if batches >= _BATCHES_HALVED else None
