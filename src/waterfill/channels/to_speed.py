"""A network that is so many times as fast: found by timing smaller and smaller ones against the original."""

from dataclasses import replace

from torch import nn

from waterfill.channels.choice.plan import Plan
from waterfill.channels.graph.cut import cut_choice
from waterfill.channels.result import Pruned
from waterfill.channels.work import Work
from waterfill.errors import BudgetError
from waterfill.network.channels.gone import take_out
from waterfill.runtime.speed import Latency, speed

_VECTOR = 8
"""Numbers that most processors multiply at once."""
_TRIES = 6
_CORRECTIONS = 2
_STEP = 0.9


def pruned_to_speed(work: Work, wanted: float) -> Pruned:
    """The network with as much time as it may take to be `wanted` times as fast, by the times of its layers, as timed.

    The share of the time is found by halving, with the real smaller module, before anything is fitted; the times of the
    fitted one stand in the result. Raises BudgetError where even the smallest is not so fast.
    """
    work, plan, least = _possible(work, wanted)
    low, high = least, 1.0
    for _ in range(_TRIES):
        share = (low + high) / 2
        if _timed(work, plan, share).speedup >= wanted:
            low = share
        else:
            high = share
    share = low
    for correction in range(_CORRECTIONS + 1):
        pruned = work.pruned(max(share, least))
        latency = _latency(work, pruned.model, "pruned")
        if latency[-1].speedup >= wanted or correction == _CORRECTIONS or share <= least:
            break
        share *= _STEP
    return replace(pruned, latency=latency)


def _possible(work: Work, wanted: float) -> tuple[Work, Plan, float]:
    """The work in such multiples that the speed can be reached, a plan of all that can go, and the share left then.

    Raises BudgetError.
    """
    for multiple in (_VECTOR, 1) if work.how.multiple is None else (work.how.multiple,):
        work = replace(work, how=replace(work.how, multiple=multiple))
        plan = work.plan(work.start())
        least = plan.least / work.whole
        plan.until(lambda plan: False)  # the order in which all would go
        reached = _timed(work, plan, least)
        if reached.speedup >= wanted:
            return work, plan, least
    raise BudgetError(
        f"speedup={wanted:g} cannot be met: without all channels that can go, the network takes "
        f"{reached.milliseconds:.3f} ms for {reached.inputs} inputs at once, {reached.speedup:.2f} times as fast; "
        "ask for less, or for another number of inputs at once"
    )


def _timed(work: Work, plan: Plan, share: float) -> Latency:
    """The speed of the network without what goes first by a plan, up to a share of the time."""
    state = work.start()
    gone, blocks = plan.first(share, work.whole)
    gone = {family: n for family, n in gone.items() if not any(block.holds(family) for block in blocks)}
    cut_choice(state.network, gone)
    for block in blocks:
        take_out(state.network.model, block.name)
    return _latency(work, work.as_returned(state.network.model), "smaller")[-1]


def _latency(work: Work, model: nn.Module, name: str) -> list[Latency]:
    inputs = work.original.inputs
    models = {"original": work.original.model, name: model}
    return speed(models, inputs.batches, (work.how.batch,), forward=inputs.forward)
