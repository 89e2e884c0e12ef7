"""The inputs that the weights of a block get in a run of it, and the stages in which they are fitted."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from waterfill.compression.steps.recorded import AllRecorded, InputRecorder, Recorded
from waterfill.network.layout import KERNEL, MATRIX, STACK, Layout
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightViews

_MOST_STAGES = 12
VARYING = 0
"""Uses of a weight that differ from batch to batch, as an expert's do."""


@dataclass(frozen=True)
class Stage:
    """Weights of a block that are fitted at once. uses: by name, how often each is used, or `VARYING`. groups: the
    names of those with the same inputs, for which one Gram matrix is summed."""

    uses: Mapping[str, int]
    groups: tuple[tuple[str, ...], ...]


def recorded(
    module: nn.Module, layouts: Mapping[str, Layout], run: Callable[[], object], uses: Mapping[str, int] | None = None
) -> tuple[list[Recorded], dict[str, int]]:
    """The inputs of the weights that a run uses, and how often it uses each, in order.

    uses: only of these; where it is known of each how often it is used, the rest of the run is left out.
    """
    names = layouts if uses is None else uses
    calls = sum(uses.values()) if uses and VARYING not in uses.values() else None
    recorder = InputRecorder(layouts, names, calls, (MATRIX, KERNEL, STACK))
    weights = {name: v for name, v in module.state_dict(keep_vars=True).items() if name in layouts}
    with Tracer(WeightViews(weights, layouts), recorder), suppress(AllRecorded):
        run()
    return recorder.recorded, recorder.order


def uses_in_all(orders: Iterable[Mapping[str, int]], layouts: Mapping[str, Layout]) -> dict[str, int]:
    """The weights that any of some runs uses, in order, with how often each run does, or `VARYING`."""
    found: dict[str, int] = {}
    for i, order in enumerate(orders):
        for name in {**found, **order}:
            same = found.get(name, order.get(name)) == order.get(name) and (i == 0 or name in found)
            found[name] = order[name] if same and layouts[name].role != STACK else VARYING
    return found


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
