"""Successive quantization with feedback (docs/theory.md): each column compensates for the errors of those before it.

With A = T^T T, T lower triangular, D(E) = 1/2 sum_o g_o sum_i T_ii^2 (E_oi + sum_{j<i} T_ij / T_ii E_oj)^2; so column
i is quantized with the target w_i + sum_{j<i} T_ij / T_ii (w_j - w^_j) and the weight T_ii^2. Going from the first
column to the last, as the decoder does, makes the mean that it will predict known to the choice of each code.

Inside a block of columns errors reach the next column one by one, in the compiled core; those of all blocks before
reach a block in one matrix product (GPTQ, arXiv 2210.17323, has the same order of operations).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from waterfill.coding import native
from waterfill.coding.model.density_model import predict
from waterfill.parts.quantizer.code_choice import CodeCosts, choose_codes
from waterfill.parts.quantizer.viterbi import cheapest_path, cosets

BLOCK = 128


def quick_products() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, twice as fast as float32."""
    known: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    return any(bool(known().get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(frozen=True, eq=False)
class Feedback:
    """The feedback of errors to later visits.

    lower: T [n, n], of A = T^T T. steps: [n], those of the visits against each other. rough: products between blocks
    may be in bfloat16 where that is quicker. device: where the choice runs.
    """

    lower: np.ndarray
    steps: np.ndarray
    rough: bool = False
    device: str = "cpu"

    @cached_property
    def unit(self) -> float:
        """The divisor of T that keeps it in the range of float32."""
        return 1.0 if self.lower.dtype == np.float32 else float(np.diagonal(self.lower).max())

    @cached_property
    def weights(self) -> Tensor:
        """T / unit [n, n], as blocks are multiplied by it."""
        quick = self.rough and quick_products()
        made = torch.empty(self.lower.shape, dtype=torch.bfloat16 if quick else torch.float32, device="cpu")
        if self.unit == 1.0 and not quick:
            return torch.from_numpy(np.asarray(self.lower, np.float32))
        for start in range(0, len(made), BLOCK):  # what is above the diagonal is never read
            now = slice(start, start + BLOCK)
            made[now, :start] = torch.from_numpy(self.lower[now, :start] / np.asarray(self.unit, self.lower.dtype))
        return made

    @cached_property
    def scales(self) -> Tensor:
        """Factors from T / unit times errors to steps of a visit, [n, 1] (float32)."""
        diagonal = np.diagonal(self.lower) * self.steps
        return torch.from_numpy((self.unit / diagonal).astype(np.float32))[:, None]

    def ratio(self, now: slice) -> np.ndarray:
        """Factors by which an error moves later targets of a block, in steps: T_ij s_j / (T_ii s_i), float32."""
        diagonal = np.diagonal(self.lower)[now] * self.steps[now]
        return (self.lower[now, now] * self.steps[now] / diagonal[:, None]).astype(np.float32)


def feed_back(x: np.ndarray, feedback: Feedback, rule: CodeCosts) -> np.ndarray:
    """Codes (int32) of x [n, channels, rows] (float32, in steps): visit i quantizes x[i] plus the errors fed back.

    On return x holds x - codes.
    """
    n = len(x)
    codes, ends, entries = np.zeros(x.shape, np.int32), rule.beginning(), torch.from_numpy(x).reshape(n, -1)
    steps = torch.from_numpy(feedback.steps.astype(np.float32))[:, None]
    past = torch.empty(entries.shape, dtype=feedback.weights.dtype, device="cpu") if n > BLOCK else None
    for start in range(0, n, BLOCK):
        now = slice(start, min(start + BLOCK, n))
        targets = x[now].copy()
        if past is not None and start:
            carried = feedback.weights[now, :start] @ past[:start]
            torch.from_numpy(targets).reshape(len(targets), -1).addcmul_(carried.float(), feedback.scales[now])
        _block((targets, x[now]), feedback.ratio(now), codes, start, (rule, ends))
        if past is not None and now.stop < n:
            torch.mul(entries[now], steps[now], out=past[now])
    return codes


def _block(
    block: tuple[np.ndarray, np.ndarray],
    ratio: np.ndarray,
    codes: np.ndarray,
    start: int,
    by: tuple[CodeCosts, np.ndarray],
) -> None:
    """Choose codes[start:] for the (targets, errors) of a block, which both change: see feedback.cpp."""
    (targets, errors), (rule, ends) = block, by
    near, taps = rule.near[start : start + len(targets)], rule.taps[start : start + len(targets)]
    if native.core is not None:
        native.core.feedback_block(
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


def _alone(rule: CodeCosts, visit: int, targets: np.ndarray, mean: np.ndarray, _: np.ndarray) -> np.ndarray:
    scale, weights = (rule.col_scale[visit], rule.row_scale), (rule.col_weight[visit], rule.row_weight)
    return choose_codes(targets, scale, mean, rule.prices, weights)


def _along(rule: CodeCosts, visit: int, targets: np.ndarray, mean: np.ndarray, ends: np.ndarray) -> np.ndarray:
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
