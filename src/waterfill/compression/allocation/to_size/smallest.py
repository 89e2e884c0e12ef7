"""The smallest file, files near it, and the bytes that one price for all weights leaves unused: by actual fits.

In a file of few bytes names, words and side information are most of it, and the curves of the weights are too coarse.
So weights are fitted one after the other, and each time the bytes of the whole file are counted.
"""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from waterfill.compression.allocation.to_size.search import HIGHEST, LOWEST
from waterfill.compression.allocation.to_size.spend import FILL, Fit, Ledger
from waterfill.compression.allocation.weight import Weight
from waterfill.network.layout import RAW

_PRICES_TRIED = 3  # below the highest
_BITS_OF_WORDS = 128.0  # at most, that the manifest saves where a blob is larger
_LEVELS = 20  # factors of 4 by which the price is lowered, at most, to spend the rest
_HALVINGS = 4  # between a price at which the file is too large and one at which it is not


@dataclass
class Trials:
    """Fits that are kept only if the file then has few enough bytes.

    file_bytes: ledger -> exact bytes of the file, of the last fit of every weight.
    """

    fit: Fit
    file_bytes: Callable[[Ledger], int]
    ledger: Ledger

    def attempt(self, i: int, price: float, most: int) -> bool:
        """Fit weight i at a price; undone, and False, where the file then has more than `most` bytes."""
        before = self.ledger.prices[i], self.ledger.bits[i]
        self.refit(i, price)
        if self.file_bytes(self.ledger) <= most:
            return True
        self.refit(i, before[0])
        return False

    def refit(self, i: int, price: float) -> None:
        """Fit weight i at a price."""
        self.ledger.prices[i], self.ledger.bits[i] = price, self.fit(i, price)

    def shrink(self, prices: Sequence[Sequence[float]]) -> None:
        """Try all `prices` of every weight for a smaller file, until none makes it smaller.

        It starts from about one price for all: descriptions that several tensors share are in the manifest once.
        """
        common = sorted({price for own in prices for price in own}, reverse=True)
        starts = [[min(own, key=lambda one: abs(math.log(one / price))) for own in prices] for price in common]
        size, before = self._bytes_at(min(starts, key=self._bytes_at, default=[])), -1
        while size != before:
            before = size
            for i, candidates in enumerate(prices):
                for price in candidates:
                    if price != self.ledger.prices[i] and self.attempt(i, price, size - 1):
                        size = self.file_bytes(self.ledger)

    def _bytes_at(self, prices: Sequence[float]) -> int:
        """Bytes of the file with every weight at a price of its own."""
        for i, price in enumerate(prices):
            if price != self.ledger.prices[i]:
                self.refit(i, price)
        return self.file_bytes(self.ledger)

    def spend_rest(self, weights: Sequence[Weight], size: int, fixed: Container[int] = ()) -> None:
        """Lower the price, for every weight that is not fixed as far as the file then has at most `size` bytes."""
        growing = [i for i, weight in enumerate(weights) if i not in fixed and _grows(weight, self.ledger, i)]
        for _ in range(_LEVELS):
            for i in list(growing):
                if self.file_bytes(self.ledger) >= FILL * size:
                    return
                price = self.ledger.prices[i]
                if price / 4 < 4.0**LOWEST:
                    growing.remove(i)
                elif not self.attempt(i, price / 4, size):
                    growing.remove(i)
                    self._approach(i, (price / 4, price), size)

    def _approach(self, i: int, between: tuple[float, float], size: int) -> None:
        """Fit weight i at about the lowest of the prices between two, of which the lower takes too many bytes."""
        low, high = between
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if self.attempt(i, middle, size) else (middle, high)


def _grows(weight: Weight, ledger: Ledger, i: int) -> bool:
    """Whether a weight takes more bits at any lower price."""
    return weight.curve.at_grid(LOWEST).bits > ledger.bits[i] + 8


def small_prices(weight: Weight) -> list[float]:
    """Prices at which a weight may take the fewest bytes of a file.

    The highest for one that the recipe fits. One that the recipe does not fit may be a constant there, and its
    description in the manifest longer than its blob: the lowest prices at which its blob is small are tried as well.
    """
    if not weight.reason or weight.layout.role == RAW:
        return [4.0**HIGHEST]
    curve = weight.curve
    least = curve.at_grid(HIGHEST).bits
    low, high = LOWEST, HIGHEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if curve.at_grid(middle).bits <= least + 8 else (middle, high)
    tried = range(high, high - _PRICES_TRIED, -1)
    return [4.0**HIGHEST, *(4.0**k for k in tried if curve.at_grid(k).bits <= least + _BITS_OF_WORDS)]
