"""The simplest way to share out bits without data, as a yardstick: every matrix gets equally many an entry.

A relative error then costs in proportion to a matrix's entries, and nothing tells one matrix from another. All matrices
together cost what they are assumed to, and vectors (biases, norms) are left as they are.
"""

import math
from collections.abc import Mapping

from lib.networks import State

from waterfill.compression.allocation.without_data import SIZE_EXPONENT, without_data
from waterfill.compression.task import plan_weights
from waterfill.importance import Importance
from waterfill.network.layout import KERNEL, MATRIX
from waterfill.recipe import parse

RECIPE = "Quantize(), equal bits"


def equal_bits(state: State) -> Mapping[str, Importance]:
    """What an error in every tensor of a state dict is to cost, so that matrices get equal bits."""
    weights = plan_weights(state, dict.fromkeys(state, parse("Quantize()")), {}, None)
    matrices = {weight.name: weight for weight in weights if weight.layout.role in (MATRIX, KERNEL)}
    costs = [2 * importance.distortion(target) for w in matrices.values() for target, importance in w.matrices(1.0)]
    typical = math.fsum(costs) / max(1, sum(weight.layout.entries for weight in matrices.values()))
    plain = {name: weight.layout.split(weight.load())[0] for name, weight in matrices.items()}
    return {
        name: without_data(target, matrices[name].layout.kernel).scaled(typical * target.numel() ** (1 - SIZE_EXPONENT))
        for name, target in plain.items()
    }
