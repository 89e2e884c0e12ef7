"""Work in several threads at once."""

import threading
from collections.abc import Callable


def failing(count: int, work: Callable[[int], bool]) -> list[int]:
    """The numbers of those of `count` threads, each of which does its own `work`, whose work is not right or raises."""
    right: list[int] = []

    def run(number: int) -> None:
        if work(number):
            right.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [number for number in range(count) if number not in right]
