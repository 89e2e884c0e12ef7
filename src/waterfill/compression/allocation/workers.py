"""Work on several weights at a time: in threads, or done ahead by an engine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Ahead(Protocol):
    """Does the work on many weights elsewhere, so that the same work here only finds its results."""

    def measure(self, k: int) -> None:
        """The curve of every weight at price 4^k."""

    def fit(self, prices: Mapping[int, float]) -> None:
        """Fits by the index of a weight, each at a price."""


@dataclass(frozen=True)
class Workers:
    """threads: weights at a time. names: of the weights, for errors. ahead: what does work before it is asked for."""

    threads: int = 1
    names: Sequence[str] = ()
    ahead: Ahead | None = None

    def measure(self, measure: Callable[[int, int], Result], k: int, count: int) -> list[Result]:
        """measure(i, k) for each of `count` weights."""
        if self.ahead is not None:
            self.ahead.measure(k)
        return self.map(lambda i: measure(i, k), range(count))

    def fit(self, fit: Callable[[int, float], Result], prices: Mapping[int, float]) -> list[Result]:
        """fit(i, price) for each of these weights."""
        if self.ahead is not None:
            self.ahead.fit(prices)
        return self.map(lambda i: fit(i, prices[i]), prices)

    def map(self, work: Callable[[int], Result], weights: Iterable[int]) -> list[Result]:
        """work(i) for the index of every weight, in the order of the indices.

        The first exception is raised again, with the weight's name as a note. It waits for the weights that are being
        worked on, as an interrupt from the keyboard does; those not yet begun are dropped.
        """
        if self.threads == 1:  # the caller's own thread, whose memory is used again
            return [self._named(work, i) for i in weights]
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(self._named, work, i) for i in weights]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _named(self, work: Callable[[int], Result], i: int) -> Result:
        try:
            return work(i)
        except Exception as error:
            if i < len(self.names):
                error.add_note(f"at the weight {self.names[i]!r}")
            raise
