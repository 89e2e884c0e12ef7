"""The simplest way to share out bits without data, as a yardstick: every matrix gets equally many an entry.

A relative error then costs in proportion to a matrix's entries, and nothing tells one matrix from another. All matrices
together cost what they are assumed to, and vectors (biases, norms) are left as they are.
"""

import math
from collections.abc import Mapping

from networks import State

from waterfill.engine import plan_weights
from waterfill.importance import Importance
from waterfill.layout import KERNEL, MATRIX
from waterfill.recipe import parse

RECIPE = "Quantize(), equal bits"


def equal_bits(state: State) -> Mapping[str, Importance]:
    """What an error in every tensor of a state dict is to cost, so that matrices get equal bits."""
    weights = plan_weights(state, parse("Quantize()"), {}, None)
    assumed = {weight.name: next(weight.asked(1.0)) for weight in weights if weight.layout.role in (MATRIX, KERNEL)}
    costs = {name: 2 * importance.distortion(target) for name, (target, importance) in assumed.items()}
    entries = {name: target.numel() for name, (target, _) in assumed.items()}
    typical = math.fsum(costs.values()) / max(1, sum(entries.values()))
    return {
        name: importance.scaled(typical * entries[name] / costs[name] if costs[name] > 0 else 1.0)
        for name, (_, importance) in assumed.items()
    }
