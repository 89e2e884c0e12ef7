"""Successive quantization with feedback on any device: the algorithm of `feedback` in torch, for GPUs.

All entries of a visit are chosen in parallel, and so are all paths of a trellis that do not depend on each other, that
is of all chunks of rows and all lanes. Visits are sequential and, along a trellis, the rows of a chunk.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from waterfill.coding import density
from waterfill.parts.quantizer.code_choice import CodeCosts
from waterfill.parts.quantizer.feedback import BLOCK, Feedback
from waterfill.parts.quantizer.viterbi import FAR, FARTHEST, SETTLE, steps

_ESCAPE = density.ESCAPE & 255


@dataclass(frozen=True, eq=False)
class _Choice:
    """The costs of one visit's codes, [channels, rows] each: scale indices, means in eighths, weights.

    prices: bits [scales, phases, 256].
    """

    scale: Tensor
    mean: Tensor
    weight: Tensor
    prices: Tensor

    def independent(self, x: Tensor) -> Tensor:
        """The code (int32) of least cost for each entry by itself; see `code_choice`."""
        shift = ((self.scale - density.SCALES + 8) >> 3).clamp_min(0)
        half = torch.where(shift > 0, 1 << (shift - 1).clamp_min(0), 0)
        whole, phase = _center(self.mean)
        index = (self.scale - 8 * shift).clamp_min(0), torch.where(shift > 0, 0, phase.abs())
        low = torch.floor(x).to(torch.int32)
        best, least = low, torch.full_like(x, torch.inf)
        for code in (low, low + 1, whole):
            residual = (torch.where(phase < 0, whole - code, code - whole) + half) >> shift
            gap = x - code
            total = self.weight * gap * gap + (self.prices[(*index, _symbol(residual))] + shift)
            if code is whole:
                total = total.where(gap.abs() < 3, torch.inf)
            best, least = torch.where(total < least, code, best), torch.minimum(total, least)
        return best

    def cosets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The least cost and the code (int32) by coset, both [4, channels, rows]; see `viterbi`."""
        index = self.scale.clamp(0, len(self.prices) - 1)
        x = x.clamp(-float(FARTHEST), float(FARTHEST))
        coset = torch.arange(4, dtype=torch.int32, device=x.device)[:, None, None]
        whole, phase = _center((self.mean >> 1) - 4 * (coset & 1))
        low = 4 * torch.floor((x - coset) * 0.25).to(torch.int32) + coset
        totals = []
        for code in (low, low + 4):
            residual = torch.where(phase < 0, whole - (code >> 1), (code >> 1) - whole)
            gap = x - code
            price = self.prices[index.expand(code.shape), phase.abs(), _symbol(residual)]
            totals.append(self.weight * gap * gap + price)
        return torch.minimum(*totals), torch.where(totals[1] < totals[0], low + 4, low)


@dataclass(frozen=True, eq=False)
class _Tables:
    """The arrays of a rule, on a device."""

    rule: CodeCosts
    row_scale: Tensor
    col_scale: Tensor
    row_weight: Tensor
    col_weight: Tensor
    prices: Tensor

    @classmethod
    def of(cls, rule: CodeCosts, device: torch.device) -> "_Tables":
        arrays = rule.row_scale, rule.col_scale, rule.row_weight, rule.col_weight, rule.prices
        return cls(rule, *(torch.from_numpy(array).to(device) for array in arrays))

    def choice(self, visit: int, codes: Tensor) -> _Choice:
        """For a visit, once those before it have their codes [visits, channels, rows]."""
        mean = torch.zeros_like(codes[0])
        for near, tap in zip(self.rule.near[visit].tolist(), self.rule.taps[visit].tolist(), strict=True):
            if near >= 0:
                mean += tap * codes[near]
        scale = self.col_scale[visit, :, None] + self.row_scale
        return _Choice(scale, mean >> 1, self.col_weight[visit, :, None] * self.row_weight, self.prices)


def feed_back(x: Tensor, feedback: Feedback, rule: CodeCosts) -> Tensor:
    """Codes (int32) of x [n, channels, rows] (float32, in steps), on the device of x, which keeps its values."""
    n, device = len(x), x.device
    codes, errors = torch.zeros(x.shape, dtype=torch.int32, device=device), x.clone()
    weights, scales = feedback.weights.float().to(device), feedback.scales.to(device)
    unequal = torch.from_numpy(feedback.steps.astype(np.float32)).to(device)[:, None]
    tables = _Tables.of(rule, device)
    ends = torch.from_numpy(rule.beginning()).to(device).long()
    for start in range(0, n, BLOCK):
        now = slice(start, min(start + BLOCK, n))
        targets = x[now].clone()
        if start:
            past = errors[:start].reshape(start, -1) * unequal[:start]
            targets += ((weights[now, :start] @ past) * scales[now]).reshape(targets.shape)
        ratio = torch.from_numpy(feedback.ratio(now)).to(device)
        for i, visit in enumerate(range(now.start, now.stop)):
            target = targets[i]
            if i:
                target = target + torch.tensordot(ratio[i, :i], errors[start:visit], dims=1)
            choice = tables.choice(visit, codes)
            codes[visit] = _along(choice, target, ends, (visit, rule)) if rule.states else choice.independent(target)
            errors[visit] -= codes[visit]
    return codes


def _along(choice: _Choice, target: Tensor, ends: Tensor, at: tuple[int, CodeCosts]) -> Tensor:
    """Codes [channels, rows] along the trellis; ends [chunks, positions, lanes]: the current states of its paths.

    Channels of one lane follow one another.
    """
    visit, rule = at
    (channels, rows), (chunks, positions, lanes) = target.shape, ends.shape
    chunk = min(rule.chunk, rows)
    fill = chunks * chunk - rows
    cost, best = choice.cosets(target)
    cost, best = (
        torch.nn.functional.pad(codes_of_group, (0, fill)) for codes_of_group in (cost, best)
    )  # free steps at the end
    cost, best = (codes_of_group.reshape(4, channels, chunks, chunk) for codes_of_group in (cost, best))
    codes = torch.empty(cost.shape[1:], dtype=torch.int32, device=target.device)
    last = torch.full((chunks,), chunk - 1, dtype=torch.int64, device=target.device)
    last[-1] -= fill
    for first in range(0, channels, lanes):
        some = slice(first, min(first + lanes, channels))
        channel = torch.arange(some.start, some.stop, dtype=torch.int64, device=target.device)
        lane = (visit // positions + channel) % lanes
        begin = ends[:, visit % positions, lane].T.reshape(-1)
        count = some.stop - some.start
        codes_of_group, end = _cheapest_paths(
            cost[:, some].reshape(4, -1, chunk), best[:, some].reshape(4, -1, chunk),
            rule.states, (begin, last.repeat(count)),
        )  # fmt: skip
        codes[some] = codes_of_group.reshape(count, chunks, chunk)
        ends[:, visit % positions, lane] = end.reshape(count, chunks).T
    return codes.reshape(channels, -1)[:, :rows]


def _cheapest_paths(cost: Tensor, best: Tensor, states: int, between: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The codes (int32 [paths, rows]) of least total cost, and the last states, by cost and best [4, paths, rows].

    between: in which state each path begins, and its last row.
    """
    (begin, last), (paths, rows) = between, cost.shape[1:]
    before, coset = (torch.from_numpy(array).to(cost.device) for array in steps(states))
    by_step = cost.permute(2, 1, 0)[:, :, coset]  # [rows, paths, states, 2]
    path = torch.full((paths, states), float(FAR), dtype=torch.float32, device=cost.device)
    path.scatter_(1, begin[:, None], 0.0)
    moved = torch.empty((rows, paths, states), dtype=torch.bool, device=cost.device)
    ending = path
    for row in range(rows):
        stay, move = (path[:, before] + by_step[row]).unbind(-1)
        moved[row] = move < stay
        path = torch.minimum(stay, move)
        if row % SETTLE == SETTLE - 1:
            path = path - path[:, :1]
        ending = torch.where((last == row)[:, None], path, ending)
    end = ending.argmin(1)
    bits = moved.long()
    back = torch.where(moved, before[:, 1], before[:, 0])
    states_after = _states_after(back, end, last)
    bit = bits.gather(2, states_after[:, :, None])[:, :, 0]
    which = coset[states_after, bit]  # [rows, paths]
    return best.permute(2, 1, 0).gather(2, which[:, :, None])[:, :, 0].T.contiguous(), end


def _states_after(back: Tensor, end: Tensor, last: Tensor) -> Tensor:
    """The state after every row [rows, paths] of the paths that are in `end` after row `last`.

    back: from which state each one is reached, [rows, paths, states]. Steps back are composed in pairs, then in fours
    and so on: as many rounds as the logarithm of the rows.
    """
    rows, paths, states = back.shape
    same = torch.arange(states, dtype=torch.int64, device=back.device).expand(1, paths, states)
    beyond = torch.arange(rows, dtype=torch.int64, device=back.device)[:, None, None] > last[:, None]
    back = torch.where(beyond, same, back)
    back = torch.cat([back[1:], same])  # from the state after the next row to the one after this
    reach = 1
    while reach < rows:
        further = back[reach:]  # from later states to the one that the nearer step begins with
        back = torch.cat([back[:-reach].gather(2, further), back[-reach:]])
        reach *= 2
    return back.gather(2, end[None, :, None].expand(rows, paths, 1))[:, :, 0]


def _center(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Means in eighths as the nearest integer and the phase that is left."""
    whole = (mean + 4) >> 3
    return whole, mean - (whole << 3)


def _symbol(residual: Tensor) -> Tensor:
    return torch.where(residual.abs() > 127, _ESCAPE, residual & 255)
