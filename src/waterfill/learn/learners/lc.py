"""The LC algorithm: learning (L) steps on a loss with a penalty, compression (C) steps that are nothing but `fit`.

    minimize L(w) subject to w = D(theta), a sum of parts for every weight
    L step: L(w) + mu/2 ||w - D(theta) - lambda/mu||^2, by any optimizer
    C step: theta = fit(w - lambda/mu)

Carreira-Perpinan and Idelbayev, arXiv 1707.01209; sums of parts: 2107.04380.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.assignment import Assignment, Recipe
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.options import Options
from waterfill.compression.task import Task, in_memory
from waterfill.errors import BadInput, BadRecipe, BudgetError
from waterfill.importance import Importance
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.matrices import learned_weights
from waterfill.learn.learners.ranks import shared
from waterfill.learn.learners.schedule import DEFAULT_SCHEDULE, Schedule
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry
from waterfill.network.running.wrapped import unwrapped
from waterfill.parts import Dense

_PRICE = 4.0**-12
"""Nats per bit for what is learned without being compressed: some seven bits of mantissa."""
_FILL = 0.98  # of a budget that is to be used
_ROUNDS, _FIRST_MOVE, _NEAR = 24, 1.05, 1.01  # of fits until a budget is met; of the price then; prices as good as one
_TINY = 1e-30
_MOST_OCTAVES = 2.0  # that the price moves in a C step
_SHARE = 1e-3  # of the mean curvature of the loss, the first weight of the penalty: it is to change little at first
_NEGLIGIBLE = 1e-7  # of the mean square of weights for a bit, where a spec says how large its parts are


_ANY = Budget()


class LC(Learner):
    """The LC algorithm for one network; every step is in the user's hands.

    Args:
        model: in training; its parameters are learned in place.
        spec: what weights are to become, a spec or its text; or, by pattern of names ("layer1.*"), one for each layer,
            as for `compress`. What no pattern matches is learned freely and stored in 16 bits or so.
        budget: bytes, bits per weight or a ratio: the price is moved so that it is met at the end; or the price itself,
            nats per bit. None of these where the spec says how large its parts are.
        schedule: how the penalty grows.
        importance: by name, the metric of the penalty and of the C step: a diagonal or a Gram matrix; uniform without.

    Raises:
        BadInput: NaN, or no parameter that a spec is meant for.
        BadRecipe: a spec without meaning, a pattern that matches nothing, or one that keeps weights bit for bit.
        BudgetError: a budget below the smallest file.

    Example:
        >>> lc = LC(model, "Codebook(levels=2) + Prune(keep=0.01)", schedule=Schedule(mu=1e-3))
        >>> loss = F.cross_entropy(model(x), y) + lc.penalty()  # L steps
        >>> lc.c_step(); lc.multipliers_step()  # and then a C step
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Recipe = "Quantize()",
        *,
        budget: Budget = _ANY,
        schedule: Schedule = DEFAULT_SCHEDULE,
        importance: Mapping[str, Importance] | None = None,
    ) -> None:
        self.model, self.schedule, self.budget = unwrapped(model), schedule, budget
        self._assignment, given = _assignment(spec), importance or {}
        task = Task.of(self.model, self._assignment, None)
        self._learned = learned_weights(
            task.weights, self.model, lambda w: given.get(w.name) or Importance(kernel=w.layout.kernel)
        )
        if not self._learned:
            raise BadInput("no parameter of the model is a matrix that a spec is meant for: there is nothing to learn")
        self._mu, self._steps = schedule.mu, 0
        self._allowed = task.allowed(budget) if budget.given else None
        self._relative = budget.price is None  # to mu: nats per bit where mu is 1
        energy = _norm([one.value for one in self._learned]) ** 2
        self._price = budget.price or _NEGLIGIBLE * energy / sum(one.value.numel() for one in self._learned)
        if self._allowed is not None:
            self._price = self._first_price(task, self._allowed)

    @property
    def mu(self) -> float:
        """The weight of the penalty. Raises BadInput where none was given and `start` was not called."""
        if self._mu is None:
            raise BadInput("the penalty has no weight yet: give Schedule(mu=...), or call start(loss)")
        return self._mu

    def parameters(self) -> list[Tensor]:
        return [value for value in self.model.parameters() if value.requires_grad]

    def after_backward(self) -> None:
        """Nothing: the model's own parameters are learned."""

    def after_step(self) -> None:
        """Nothing: the model's own parameters are learned."""

    def start(self, loss: Callable[[], Tensor]) -> float:
        """Do the first C step and choose the first mu: a thousandth of the mean curvature of the loss on the way from
        the network as it is to the compressed one. A mu that was given stays.

        loss: its value for the network as it is when it is called, on a batch that stays the same.

        Returns:
            mu.
        """
        if self._mu is not None:
            self.c_step()
            return self.mu
        self._mu = 1.0
        self.c_step()
        values = [one.value for one in self._learned]
        slopes = [self._slopes(loss, values)]
        before = [value.detach().clone() for value in values]
        try:
            self._put([one.compressed for one in self._learned])
            slopes.append(self._slopes(loss, values))
        finally:
            self._put(before)
        change = _norm([own - other for own, other in zip(*slopes, strict=True)])
        self._mu = _SHARE * change / max(_norm([one.gap() for one in self._learned]), _TINY) or 1.0
        return self.mu

    @staticmethod
    def _slopes(loss: Callable[[], Tensor], values: list[nn.Parameter]) -> list[Tensor]:
        """The gradient of the loss by each weight."""
        with torch.enable_grad():
            found = torch.autograd.grad(loss(), values, allow_unused=True)
        return [torch.zeros_like(v) if slope is None else slope for slope, v in zip(found, values, strict=True)]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        """Give the network other weights."""
        for one, value in zip(self._learned, values, strict=True):
            one.value.copy_(value)

    def penalty(self) -> Tensor:
        """mu/2 ||w - D(theta) - lambda/mu||^2 of all weights, each in its metric."""
        return torch.stack([one.penalty(self.mu) for one in self._learned]).sum()

    def learning_rate(self, rate: float) -> float:
        """The rate for an L step: min(rate, 1/mu); beyond it the penalty alone would diverge (1707.01209)."""
        return min(rate, 1 / self.mu)

    def c_step(self) -> None:
        """Fit every weight to w - lambda/mu, from what it was before; towards a budget, at the next price."""
        size = self.file_size = self._fit()
        self._steps += 1
        if self._allowed is not None and not _FILL * self._allowed <= size <= self._allowed:
            bits = 8 * (size - self._allowed) / sum(one.value.numel() for one in self._learned)
            most = _MOST_OCTAVES / self._steps**0.5  # weights that lie on a grid by now are not to leave it
            self._price *= 2.0 ** max(-most, min(most, 2 * bits))

    @torch.no_grad()
    def multipliers_step(self) -> None:
        """lambda - mu (w - D(theta)) in place of lambda, where there are multipliers; then the next mu."""
        for one in self._learned if self.schedule.multipliers else ():
            one.multiplier -= self.mu * one.gap()
        self._mu = self.mu * self.schedule.growth

    @torch.no_grad()
    def result(self) -> CompressedModel:
        """D(theta) of a last C step, and what is no matrix as it was learned.

        Raises:
            BudgetError: where no price gives a file within the budget.
        """
        size = self._fit()
        if self._allowed is not None and not _FILL * self._allowed <= size <= self._allowed:
            self._meet(self._allowed, size)
        return self._model()

    def _meet(self, allowed: int, size: int) -> None:
        """Fit at other prices, the nearest first, until the file, of `size` bytes now, has at most those allowed."""
        low, high = (self._price, None) if size > allowed else (None, self._price)  # too large a file, small enough
        move = _FIRST_MOVE
        for _ in range(_ROUNDS):
            if low is not None and high is not None:
                self._price = math.sqrt(low * high)
            else:
                self._price *= move if high is None else 1 / move
                move *= move
            size = self._fit()
            low, high = (self._price, high) if size > allowed else (low, self._price)
            if _FILL * allowed <= size <= allowed or (low and high and high < _NEAR * low):
                break
        if size > allowed and high is not None:
            self._price = high
            size = self._fit()
        if size > allowed:
            raise BudgetError(
                f"a file of {allowed} bytes is asked for, and what was learned takes {size}; "
                "allow more, or use a spec that can spend less"
            )

    def state(self) -> dict[str, Tensor]:
        """The multipliers, the parts as bytes, mu and the price."""
        values = [self._mu or math.nan, self._price, float(self._steps)]
        numbers = torch.tensor(values, dtype=torch.float64, device="cpu")
        kept = {f"multiplier.{one.name}": one.multiplier for one in self._learned}
        kept |= {f"compressed.{one.name}": one.compressed for one in self._learned}
        for one in self._learned:
            if one.blob:
                kept[f"parts.{one.name}"] = torch.frombuffer(bytearray(one.blob), dtype=torch.uint8)
        return kept | {"numbers": numbers}

    def load(self, state: Mapping[str, Tensor]) -> None:
        mu, self._price, steps = state["numbers"].tolist()
        self._mu, self._steps = None if math.isnan(mu) else mu, int(steps)
        for one in self._learned:
            one.multiplier = state[f"multiplier.{one.name}"].to(one.value).clone()
            one.compressed = state[f"compressed.{one.name}"].to(one.value).clone()
            blob = state.get(f"parts.{one.name}")
            if blob is not None:
                one.adopt(blob.numpy().tobytes())

    @by_own_arithmetic
    @torch.no_grad()
    def _fit(self) -> int:
        """Fit every weight at the price; bytes of the file."""
        price = self._price * self.mu if self._relative else self._price
        known = {one.name: one for one in sorted(self._learned, key=lambda one: -one.value.numel())}
        for name, blob in shared(list(known), lambda name: known[name].fit(self.mu, price)).items():
            known[name].adopt(blob)
        return self._model().size

    def _model(self) -> CompressedModel:
        """What there is by the last C step, and everything else as it is now."""
        learned = {one.name: one.entry() for one in self._learned}
        task = Task.of(self.model, self._assignment, None)
        entries: dict[str, Entry] = {w.name: learned.get(w.name) or w.fit(_PRICE) for w in task.weights}
        return CompressedModel(entries, dict(task.aliases), task.notes)

    def _first_price(self, task: Task, allowed: int) -> float:
        """The price at which, for the network as it is, a file has so many bytes. Raises BudgetError."""
        known = {one.name: one for one in self._learned}
        weights = [
            replace(known[w.name].weight, importance=partial(getattr, known[w.name], "importance"))
            if w.name in known
            else replace(w, importance=None)
            for w in task.weights
        ]
        return in_memory(replace(task, weights=weights), Options()).run.price_for(allowed)


def _assignment(spec: Recipe) -> Assignment:
    """The spec of each weight; what no pattern matches is learned freely. Raises BadRecipe."""
    found = Assignment.of(spec, default=Dense())
    exact = [pattern for pattern, own in found.rules if own is None]
    if exact:
        raise BadRecipe(
            f"{exact[0]!r} keeps weights bit for bit, and learning changes them: freeze what is to stay "
            "(requires_grad_(False)), or give it a spec"
        )
    return found


def _norm(tensors: list[Tensor]) -> float:
    """The norm of all tensors together."""
    return math.sqrt(sum(float(value.detach().double().square().sum()) for value in tensors))
