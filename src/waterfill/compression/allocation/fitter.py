"""Fits all weights to a budget; the caller keeps the results.

One price for all is found from the curves of the weights; then the largest are fitted again until a size is met.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock

from waterfill.compression.allocation.budget import USED, Budget
from waterfill.compression.allocation.to_size import search
from waterfill.compression.allocation.to_size.exact import Exact
from waterfill.compression.allocation.to_size.knapsack import few_sized, share_out
from waterfill.compression.allocation.to_size.search import HIGHEST, Bracket
from waterfill.compression.allocation.to_size.smallest import Trials, small_prices
from waterfill.compression.allocation.to_size.spend import FILL, Ledger, refit_to_budget, spend
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.allocation.without_data import SIZE_EXPONENT
from waterfill.compression.allocation.workers import Workers
from waterfill.errors import BudgetError
from waterfill.model.compressed import count_weights
from waterfill.progress import Progress

FIXED_RATE_PRICE = 4.0**-7
"""Nats per bit for the small tensors of a network whose recipe has a fixed rate."""
_ROUNDS = 6  # of refits, as the size of the manifest changes with the parts
_ROUNDS_IN_ORDER = 2  # of these, those that refit only the weights in `order`
_MANIFEST_BITS = 64  # that it may grow by in a round
_TIGHT_BYTES = 64  # a matrix: with fewer, a budget may be below the smallest file
_HALVINGS = 3  # of a factor of 4 in the price
_MUCH, _WORTH_A_WORD = 1 / 2, 1 / 16  # shares of a budget that tensors kept bit for bit take: to warn, to mention


@dataclass
class Fitter:
    """Fits the weights of one compression.

    weights: to be fitted. fit: (index, price) -> real bits of the blob at that price, which the callee keeps.
    overhead: (blob lengths in order) -> bytes of the file beside the blobs. threads: weights at a time.
    """

    weights: list[Weight]
    fit: Callable[[int, float], float]
    overhead: Callable[[Sequence[int]], int]
    progress: Callable[[Progress], None] | None = None
    threads: int = 1
    _done: dict[str, set[int]] = field(default_factory=dict)
    _entries_done: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _last_k: int | None = None

    @cached_property
    def entries(self) -> int:
        """Real numbers in all weights."""
        return sum(w.layout.numbers for w in self.weights)

    @cached_property
    def workers(self) -> Workers:
        """Threads that fit several weights at a time."""
        return Workers(min(self.threads, max(1, len(self.weights))), [w.name for w in self.weights])

    def meet(self, budget: Budget, original: int) -> Ledger:
        """Fit every weight to the budget; `original`: bytes of the original tensors. Raises BudgetError."""
        size = budget.file_bytes(count_weights((w.name, w.layout) for w in self.weights), original)
        return self.at_price(budget.price or FIXED_RATE_PRICE) if size is None else self.to_size(size)

    def at_price(self, price: float) -> Ledger:
        """Fit every weight at one price."""
        bits = self.workers.map(lambda i: self._fit(i, price), range(len(self.weights)))
        return Ledger({i: price for i in range(len(bits))}, dict(enumerate(bits)))

    def to_size(self, size: int) -> Ledger:
        """Fit every weight so that the file has at most `size` bytes and, where the parts allow, nearly that.

        Warns where most of it goes to tensors that are kept bit for bit. Raises BudgetError where the smallest file has
        more.
        """
        bracket = self.bracket(size)
        exact = Exact.among(self.weights)
        if exact.bytes > _MUCH * size and len(exact.tensors) < len(self.weights):
            warnings.warn(f"of the {size} bytes allowed, {exact.text()}; little is left for the rest", stacklevel=2)
        ledger = spend(bracket, 8.0 * (size - self._overhead_between(bracket) - 8), self._fit, self.workers)
        self._share_out(ledger, size)
        self.fit_within(ledger, bracket, size)
        return ledger

    def _share_out(self, ledger: Ledger, size: int) -> None:
        """Share a file of `size` bytes out among the weights that have few sizes."""
        share_out(self.weights, Trials(self._fit, self.file_bytes, ledger), size)

    def file_bytes(self, ledger: Ledger) -> int:
        """Exact bytes of the file, as far as its weights are fitted."""
        return sum(ledger.lengths) + self.overhead(ledger.lengths)

    def fit_within(self, ledger: Ledger, bracket: Bracket, size: int) -> None:
        """Fit weights again, the largest first, until the file has at most `size` bytes and uses most of them.

        Raises BudgetError where the smallest file has more.
        """
        for _ in range(_ROUNDS):
            if self.file_bytes(ledger) <= size:
                break
            self._refit(ledger, bracket, size, bracket.largest_first)
        if self.file_bytes(ledger) > size:
            self._fit_tightly(ledger, bracket.k, size)
        self._spend_rest(ledger, size)

    def fill_up(self, ledger: Ledger, bracket: Bracket, size: int, order: Sequence[int]) -> None:
        """Fit weights again until the file has about `size` bytes, if possible only those in `order`.

        Where that does not succeed, the file may be larger.
        """
        few = frozenset(few_sized(self.weights))
        order, bracket = [i for i in order if i not in few], replace(bracket, fixed=few)
        for k in range(_ROUNDS):
            room = self._room(ledger, size)
            if ledger.total <= room and (ledger.total >= FILL * room or k == _ROUNDS - 1):
                break
            self._refit(ledger, bracket, size, order if k < _ROUNDS_IN_ORDER else bracket.largest_first)
        if self.file_bytes(ledger) > size:
            self._share_out(ledger, size)
        self._spend_rest(ledger, size)

    def _room(self, ledger: Ledger, size: int) -> float:
        """Bits that a file of this size leaves for blobs."""
        return 8.0 * (size - self.overhead(ledger.lengths))

    def _refit(self, ledger: Ledger, bracket: Bracket, size: int, order: Sequence[int]) -> None:
        refit_to_budget(bracket, max(0.0, self._room(ledger, size) - _MANIFEST_BITS), self._fit, ledger, order)

    def _spend_rest(self, ledger: Ledger, size: int) -> None:
        """Where much of a budget is left, spend it on weights that can use it."""
        if self.file_bytes(ledger) < USED * size:
            Trials(self._fit, self.file_bytes, ledger).spend_rest(self.weights, size, few_sized(self.weights))

    def _fit_tightly(self, ledger: Ledger, k: int, size: int) -> None:
        """Fit every weight at the lowest price at which the file has at most `size` bytes, else as in the smallest.

        k: the price 4^k is about the lowest that may do. Raises BudgetError where the smallest file has more.
        """
        self.check(size)
        self.weights[:] = map(_widened, self.weights)
        low, high = k - 3.0, float(HIGHEST)
        best = None
        while high - low > 2.0**-_HALVINGS:
            middle = (low + high) / 2 if high - low <= 1 else float((low + high) // 2)
            fits = self.file_bytes(self.at_price(4.0**middle)) <= size
            low, high = (low, middle) if fits else (middle, high)
            best = middle if fits else best
        prices = self.smallest[1] if best is None else dict.fromkeys(ledger.prices, 4.0**best)
        bits = self.workers.map(lambda i: self._fit(i, prices[i]), range(len(self.weights)))
        ledger.prices.update(prices)
        ledger.bits.update(enumerate(bits))

    @cached_property
    def smallest(self) -> tuple[int, dict[int, float]]:
        """Bytes of the smallest file, whatever the budget, and the price of each of its weights."""
        with self._with_all_choices():
            trials = Trials(self._fit, self.file_bytes, self.at_price(4.0**HIGHEST))
            trials.shrink(self.workers.map(lambda i: small_prices(self.weights[i]), range(len(self.weights))))
        return self.file_bytes(trials.ledger), trials.ledger.prices

    @contextmanager
    def _with_all_choices(self) -> Iterator[None]:
        """A block in which every weight has its whole choice of specs again."""
        chosen = list(self.weights)
        self.weights[:] = map(_widened, chosen)
        try:
            yield
        finally:
            self.weights[:] = chosen

    def check(self, size: int) -> None:
        """Raise BudgetError if the smallest file has more than `size` bytes."""
        smallest = self.smallest[0]
        if size < smallest:
            exact = Exact.among(self.weights)
            kept = f"; {exact.text()}" if exact.bytes > _WORTH_A_WORD * size else ""
            raise BudgetError(
                f"a file of {size} bytes is asked for, and the smallest that this recipe can make has {smallest}; "
                f"allow more, or use a recipe that can spend less{kept}"
            )

    def price_for(self, size: int) -> float:
        """The price at which, by the curves, the file has `size` bytes. Raises BudgetError as `to_size`."""
        bracket = self.bracket(size)
        return bracket.price(bracket.share(8.0 * (size - self._overhead_between(bracket))))

    def _overhead_between(self, bracket: Bracket) -> int:
        """Bytes beside the blobs, were every weight halfway between the two prices."""
        return self.overhead([int(bracket.bits(i, 0.5) / 8) for i in range(len(self.weights))])

    def bracket(self, size: int) -> Bracket:
        """The grid prices between which a file of `size` bytes lies. Raises BudgetError where the smallest has more."""
        bits = 8.0 * (size - self.overhead([1] * len(self.weights)))
        if bits < 8 * _TIGHT_BYTES * sum(w.layout.count for w in self.weights):
            self.check(size)
        guess = self._guess(bits / max(1, self.entries)) if self._last_k is None else self._last_k
        few = frozenset(few_sized(self.weights))
        bracket = replace(search.bracket(self._measure, len(self.weights), bits, guess, self.workers), fixed=few)
        if bracket.high.sum() > bits:
            self.check(size)
        self._last_k = bracket.k  # a weight or two may change before the next search
        return bracket

    def _guess(self, bits: float) -> int:
        """The k at which price 4^k spends about so many bits per entry, by the rate of Gaussian sources."""
        levels = [(w.level(bits), w.layout.numbers) for w in self.weights]
        known = [(level, entries) for level, entries in levels if level is not None]
        covered = sum(entries for _, entries in known)
        if covered > 0.5 * self.entries:
            return round(sum(level * entries for level, entries in known) / covered)
        assumed = [(w.factor * max(2, math.prod(w.layout.matrix)) ** (SIZE_EXPONENT - 1), w) for w in self.weights]
        spent = sum(w.layout.entries * math.log(cost, 4) for cost, w in assumed) / max(1, self.entries)
        return min(0, round(spent - bits))

    def _measure(self, i: int, k: int) -> float:
        bits = self.weights[i].curve.at_grid(k).bits
        self._report("measuring", i)
        return bits

    def _fit(self, i: int, price: float) -> float:
        bits = self.fit(i, price)
        self._report("fitting", i)
        return bits

    def _report(self, stage: str, i: int) -> None:
        if self.progress is None:
            return
        with self._lock:
            done = self._done.setdefault(stage, set())
            if i not in done:
                done.add(i)
                self._entries_done[stage] = self._entries_done.get(stage, 0) + self.weights[i].layout.numbers
            self.progress(Progress(stage, len(done), len(self.weights), self._entries_done[stage], self.entries))


def _widened(weight: Weight) -> Weight:
    """The weight as it was before one of several specs was chosen for it."""
    return weight if weight.choice is None else weight.with_spec(weight.choice)
