"""Guards against harm from few inputs, by a test on some of them that are held out."""

from collections.abc import Callable

from torch import nn

from waterfill.calibration.calibrate import Calibration
from waterfill.errors import BadInput
from waterfill.evaluation.outputs import ReferenceOutputs
from waterfill.importance import ImportanceMap
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.inputs import Inputs


def better_without(
    model: nn.Module,
    inputs: Inputs,
    calibrate: Callable[[Inputs], Calibration],
    compress: Callable[[ImportanceMap | None], CompressedModel],
) -> CompressedModel | None:
    """The model compressed without inputs, if its outputs on held-out inputs are closer than with the other inputs.

    Else None, and where there is nothing to hold out. compress: with an importance, or None, to the budget.
    """
    try:
        fitting, held = inputs.hold_out(0.5)
        judge = ReferenceOutputs(model, held.batches, held.forward)
        with_inputs = compress(calibrate(fitting))
    except BadInput:  # a single input cannot be held out
        return None
    without = compress(None)
    return without if judge.error(without) < judge.error(with_inputs) else None
