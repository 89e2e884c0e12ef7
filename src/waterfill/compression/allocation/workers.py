"""Work on several weights at a time, in threads."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """threads: weights at a time. names: of the weights, for errors."""

    threads: int = 1
    names: Sequence[str] = ()

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
