"""A few inputs are not to make things worse: what they would do is tried on those of them that are held out."""

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
    """What is made without inputs, if it is closer to the model on some inputs than what is made of the others.

    compress: with the importance that it gets, to the budget. None where there is nothing to hold out.
    """
    try:
        fitting, held = inputs.hold_out(0.5)
        judge = ReferenceOutputs(model, held.batches, held.forward)
        tried = compress(calibrate(fitting))
    except BadInput:  # what was cut in two may have been a single input
        return None
    free = compress(None)
    return free if judge.error(free) < judge.error(tried) else None
