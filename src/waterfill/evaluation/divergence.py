"""The KL divergence of temperature-scaled probabilities."""

import torch
from torch import Tensor

from waterfill.evaluation.metrics import divergences, rows_of, squared_errors

ENTROPY = 2.0
"""The least entropy of temperature-scaled probabilities, nats."""
_SHARE_OF_UNIFORM_ENTROPY = 0.8  # of the entropy of uniform probabilities, where that is less than ENTROPY
_HIGHEST_TEMPERATURE = 1e4
_MOST_STEPS = 40
_CLOSE = 1e-5  # of the entropy that is required
_LEAST_ENTROPY = 1e-4  # below, its rounding in float32 misleads a Newton step
_IMPOSSIBLE = -1e18  # a logit of no probability, whose square float32 can hold
_TINY = 1e-30
_ENTRIES_AT_A_TIME = 1 << 18  # of logits, so that the passes over them stay in the cache


def are_logits(outputs: Tensor) -> bool:
    """Whether outputs can be logits, classes last: a vector for each input or each place of a sequence."""
    return outputs.ndim in (2, 3) and outputs.shape[-1] > 1


def distance(outputs: Tensor, reference: Tensor) -> float:
    """KL(reference || outputs) at the temperature of the reference, nats, mean of the rows.

    For small errors it is the form that `calibration.probes.tempered` estimates. Where outputs cannot be logits: their
    mean squared error.
    """
    actual, expected = rows_of(outputs, reference)
    if not are_logits(reference):
        return float(squared_errors(actual, expected).sum()) / max(1, actual.numel())
    expected, actual = expected.float(), actual.float()
    degrees = temperature(expected)
    return float(divergences(actual / degrees, expected / degrees).mean())


def temperature(logits: Tensor) -> Tensor:
    """The least temperature T [..., 1], at least 1, at which softmax(logits / T) has the entropy that is required.

    Masked classes, of logits minus infinity, do not count.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    rows = max(1, _ENTRIES_AT_A_TIME // max(1, flat.shape[1]))
    return torch.cat([_of_rows(some) for some in flat.split(rows)] or [flat[:, :1]]).reshape(*logits.shape[:-1], 1)


def _of_rows(logits: Tensor) -> Tensor:
    """`temperature` of rows [rows, classes] that fit the cache."""
    moved = (logits - logits.amax(-1, keepdim=True)).clamp_min(_IMPOSSIBLE)
    possible = (moved > _IMPOSSIBLE).sum(-1, dtype=torch.float32)
    target = (_SHARE_OF_UNIFORM_ENTROPY * possible.clamp_min(1).log()).clamp_max(ENTROPY)
    found = torch.ones_like(target)
    sure = (_entropy(moved, found)[0] < target).nonzero()[:, 0]
    found[sure] = _inverse_temperature(moved[sure], target[sure])
    return (1 / found).to(logits.dtype)[:, None]


def _inverse_temperature(logits: Tensor, target: Tensor) -> Tensor:
    """1 / T of rows whose entropy at T = 1 is below the target [rows], by Newton steps between known bounds.

    logits: their largest is zero. The logarithm of a small entropy is nearly linear in 1 / T.
    """
    low, high = torch.full_like(target, 1 / _HIGHEST_TEMPERATURE), torch.ones_like(target)
    now = high.clone()
    for _ in range(_MOST_STEPS if len(target) else 0):
        entropy, slope = _entropy(logits, now)
        if bool(((entropy - target).abs() <= _CLOSE * target).all()):
            break
        low, high = torch.where(entropy > target, now, low), torch.where(entropy > target, high, now)
        step = now - (entropy / target).log() * entropy / slope
        inside = (step > low) & (step < high) & (entropy > _LEAST_ENTROPY)
        now = torch.where(inside, step, (low * high).sqrt())
    return now


def _entropy(logits: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of softmax(logits * inverse), [rows], and their derivative by `inverse`, [rows]; the largest logit is 0."""
    powers = (logits * inverse[:, None]).exp_()
    total = powers.sum(-1)
    powers *= logits
    mean = powers.sum(-1) / total
    powers *= logits
    variance = powers.sum(-1) / total - mean.square()
    return total.log() - inverse * mean, -(inverse * variance).clamp_min(_TINY)
