"""A run: weights fitted to a target, whoever keeps what they become.

One price for all; the curves of the weights say which, and the last and largest are fitted until a size is met.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

from waterfill.compression.allocation.budget import Target
from waterfill.compression.allocation.search import Bracket, bracket, in_threads
from waterfill.compression.allocation.spend import FILL, Ledger, settle, spend
from waterfill.compression.allocation.weight import Weight
from waterfill.errors import BudgetError
from waterfill.importance import SIZE_EXPONENT
from waterfill.model.compressed import count_weights
from waterfill.network.layout import RAW
from waterfill.progress import Progress

_MUCH = 0.5  # of a budget
_NAMED = 3
FIXED_RATE_PRICE = 4.0**-7
"""Nats per bit for the small tensors beside a recipe of fixed rate."""


@dataclass(frozen=True)
class Exact:
    """The tensors that are kept bit for bit, whatever the budget: (name, bytes, reason), the largest first."""

    tensors: Sequence[tuple[str, int, str]]

    @classmethod
    def among(cls, weights: Sequence[Weight]) -> "Exact":
        """Those among some weights."""
        raw = [weight for weight in weights if weight.layout.role == RAW and weight.layout.entries]
        sizes = [(weight.name, math.ceil(weight.curve.at_grid(0).bits / 8), weight.reason) for weight in raw]
        return cls(sorted(sizes, key=lambda size: -size[1]))

    @property
    def bytes(self) -> int:
        """Bytes of all of them in the file, about."""
        return sum(size for _, size, _ in self.tensors)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.tensors)

    def text(self) -> str:
        """How much they take, and the largest of them by name."""
        told = [f"{name!r} ({size} bytes; {reason})" for name, size, reason in self.tensors[:_NAMED]]
        more = f" and {self.count - _NAMED} more" if self.count > _NAMED else ""
        return f"{self.bytes} bytes are taken by tensors that are kept bit for bit: {', '.join(told)}{more}"


@dataclass
class Run:
    """One compression under way.

    weights: what is to be fitted. fit: (index, price) -> real bits of the blob found there, which the callee keeps.
    overhead: (blob lengths in order) -> bytes of the file beside the blobs. workers: threads.
    """

    weights: Sequence[Weight]
    fit: Callable[[int, float], float]
    overhead: Callable[[Sequence[int]], int]
    progress: Callable[[Progress], None] | None = None
    workers: int = 1
    _done: dict[str, set[int]] = field(default_factory=dict)
    _entries_done: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _last: int | None = None

    @cached_property
    def entries(self) -> int:
        """Numbers of all weights."""
        return sum(w.layout.numbers for w in self.weights)

    @property
    def _threads(self) -> int:
        """No more than there are weights."""
        return min(self.workers, max(1, len(self.weights)))

    def meet(self, target: Target, original: int) -> Ledger:
        """Fit every weight as the target asks; `original`: bytes of the tensors as they were."""
        size = target.file_bytes(count_weights((w.name, w.layout) for w in self.weights), original)
        return self.at_price(target.price or FIXED_RATE_PRICE) if size is None else self.to_size(size)

    def at_price(self, price: float) -> Ledger:
        """Fit every weight at one price."""
        with in_threads(self._threads) as each:
            bits = list(each(lambda i: self._fit(i, price), range(len(self.weights))))
        return Ledger({i: price for i in range(len(bits))}, dict(enumerate(bits)))

    def to_size(self, size: int) -> Ledger:
        """Fit every weight so that the file has at most `size` bytes and, where the parts allow, nearly that.

        Warns where most of it goes to tensors that are kept bit for bit. Raises BudgetError, naming such.
        """
        found = self.bracket(size)
        lengths = [int(found.bits(i, 0.5) / 8) for i in range(len(self.weights))]
        allowed = 8.0 * (size - self.overhead(lengths) - 8)
        exact = Exact.among(self.weights)
        if exact.bytes > _MUCH * size and exact.count < len(self.weights):
            warnings.warn(f"of the {size} bytes allowed, {exact.text()}; little is left for the rest", stacklevel=2)
        return self.settled(spend(found, allowed, self._fit, self._threads), found, size)

    def settled(self, ledger: Ledger, found: Bracket, size: int, order: Sequence[int] | None = None) -> Ledger:
        """The ledger once the file has at most `size` bytes.

        order: weights that may be fitted again for it, if possible these alone; then the file is filled too.
        """
        fill = order is not None
        for attempt in range(6):
            lengths = [int(ledger.bits[i] / 8) for i in range(len(self.weights))]
            exact = 8.0 * (size - self.overhead(lengths))
            if ledger.total <= exact and (not fill or ledger.total >= FILL * exact or attempt == 5):
                return ledger
            with suppress(BudgetError) if order is not None else nullcontext():
                settle(found, max(0.0, exact - 64), self._fit, ledger, order=order if attempt < 2 else None)
        raise BudgetError(f"{size} bytes could not be met to the byte; allow a little more")

    def price_for(self, size: int) -> float:
        """The price at which, by the curves, the file has `size` bytes."""
        found = self.bracket(size)
        lengths = [int(found.bits(i, 0.5) / 8) for i in range(len(self.weights))]
        return found.price(found.share(8.0 * (size - self.overhead(lengths))))

    def bracket(self, size: int) -> Bracket:
        """The grid prices between which a file of `size` bytes lies. Raises BudgetError where it cannot be so small."""
        least = self.overhead([1] * len(self.weights))
        if size <= least:
            raise BudgetError(f"a budget of {size} bytes is less than the names and checksums alone take ({least})")
        guess = self._guess(8 * (size - least) / max(1, self.entries)) if self._last is None else self._last
        bits = 8.0 * (size - least)
        try:
            found = bracket(self._measure, len(self.weights), bits, max(-24, min(12, guess)), self._threads)
        except BudgetError as error:
            exact = Exact.among(self.weights)
            raise (BudgetError(f"{error}; {exact.text()}") if 16 * exact.bytes > size else error) from None
        self._last = found.k  # a weight or two may change before the next search
        return found

    def _guess(self, bits: float) -> int:
        """The k at which price 4^k spends about so many bits an entry, by the high-rate formula."""
        known = [(w.level, w.layout.numbers) for w in self.weights if w.level is not None]
        covered = sum(entries for _, entries in known)
        if covered > 0.5 * self.entries:
            return round(sum(level * entries for level, entries in known) / covered - bits)
        average = max(2.0, self.entries / len(self.weights))  # where a relative error has its cost
        return min(0, round(-bits - (1 - SIZE_EXPONENT) * math.log(average, 4)))

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
