"""Successive quantization with feedback (DESIGN 6.3): each column takes over the errors of the columns before it.

With A = T^T T, T lower triangular, D(E) = 1/2 sum_o g_o sum_i T_ii^2 (E_oi + sum_{j<i} T_ij / T_ii E_oj)^2; so column
i is quantized with the target w_i + sum_{j<i} T_ij / T_ii (w_j - w^_j) and the weight T_ii^2. Going from the first
column to the last, as the decoder does, makes the mean that it will predict known to the choice of each code.

Inside a block of columns errors reach the next column one by one, in the compiled core; a block's errors reach all
later blocks in one matrix product (the order of GPTQ, arXiv 2210.17323).
"""

import numpy as np
import torch

from waterfill.coding.compiled import native
from waterfill.coding.scale_model import predict
from waterfill.parts.choose import Rule, choose_codes
from waterfill.parts.viterbi import cheapest_path, cosets

BLOCK = 128


def feed_back(x: np.ndarray, factor: tuple[np.ndarray, np.ndarray], rule: Rule) -> np.ndarray:
    """Codes (int32) of x [n, channels, rows] (float32, in steps): visit i quantizes x[i] as errors before it ask for.

    factor: T [n, n], and the steps [n] of the visits against each other. On return x holds x - codes.
    """
    lower, steps = factor
    n = len(x)
    diagonal = np.diagonal(lower) * steps
    wide = lower.dtype == np.float32
    unit = 1.0 if wide else float(diagonal.max())  # of what is carried: T times errors, in its range
    codes, carried = np.zeros(x.shape, np.int32), np.zeros(x.shape, np.float32)
    ends = rule.beginning()
    for start in range(0, n, BLOCK):
        now, later = slice(start, min(start + BLOCK, n)), slice(start + BLOCK, n)
        ratio = (lower[now, now] * steps[now] / diagonal[now, None]).astype(np.float32)
        targets = x[now].copy()
        if start:
            targets += carried[now] * (unit / diagonal[now, None, None]).astype(np.float32)
        _block((targets, x[now]), ratio, codes, start, (rule, ends))
        if later.start < n:
            errors = torch.from_numpy((x[now] * steps[now, None, None].astype(np.float32)).reshape(len(targets), -1))
            weights = lower[later, now] if wide else (lower[later, now] / unit).astype(np.float32)
            torch.from_numpy(carried[later].reshape(n - later.start, -1)).addmm_(torch.from_numpy(weights), errors)
    return codes


def _block(
    block: tuple[np.ndarray, np.ndarray], ratio: np.ndarray, codes: np.ndarray, start: int, by: tuple[Rule, np.ndarray]
) -> None:
    """Choose codes[start:] for the (targets, errors) of a block, which both change: see native/feedback.cpp."""
    (targets, errors), (rule, ends) = block, by
    near, taps = rule.near[start : start + len(targets)], rule.taps[start : start + len(targets)]
    if native is not None:
        native.feedback_block(
            targets, errors, ratio, codes, start, near, taps, rule.row_scale, rule.col_scale, rule.row_weight,
            rule.col_weight, rule.prices, rule.transition, ends, rule.chunk,
        )  # fmt: skip
        return
    for i in range(len(targets)):
        if i:
            targets[i] += np.tensordot(ratio[i, :i], errors[:i], axes=1)
        used = near[i] >= 0
        mean = predict(list(codes), near[i][used], taps[i][used]) if used.any() else np.zeros((0, 0), np.int32)
        choose = _along if rule.states else _alone
        codes[start + i] = choose(rule, start + i, targets[i], mean, ends)
        errors[i] -= codes[start + i]


def _alone(rule: Rule, visit: int, targets: np.ndarray, mean: np.ndarray, _: np.ndarray) -> np.ndarray:
    scale, weights = (rule.col_scale[visit], rule.row_scale), (rule.col_weight[visit], rule.row_weight)
    return choose_codes(targets, scale, mean, rule.prices, weights)


def _along(rule: Rule, visit: int, targets: np.ndarray, mean: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Codes along the trellis; ends [chunks, positions, lanes]: the states of its paths, which move on."""
    codes = np.empty(targets.shape, np.int32)
    mean = mean if mean.size else np.zeros(targets.shape, np.int32)
    positions, lanes = ends.shape[1:]
    for channel, start in np.ndindex(len(targets), len(ends)):
        rows = slice(start * rule.chunk, (start + 1) * rule.chunk)
        weight = rule.row_weight[rows] * rule.col_weight[visit, channel]
        scale = rule.row_scale[rows] + rule.col_scale[visit, channel]
        best = cosets(targets[channel, rows], weight, scale, mean[channel, rows], rule.prices)
        at = start, visit % positions, (visit // positions + channel) % lanes
        codes[channel, rows], ends[at] = cheapest_path(*best, rule.states, int(ends[at]))
    return codes
