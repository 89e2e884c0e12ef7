"""Work in threads: results in order, errors that name their weight, and nothing more begun after one."""

import threading
import time

import pytest

from waterfill.compression.allocation.workers import Workers


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_weights(threads):
    def late_first(i: int) -> int:
        time.sleep(0.02 / (1 + i))
        return i * i

    assert Workers(threads).map(late_first, [0, 5, 2, 7]) == [0, 25, 4, 49]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_names_its_weight_and_what_has_not_begun_is_dropped(error):
    begun, known = [], threading.Event()

    def fails_first(i: int) -> None:
        begun.append(i)
        if i == 0:
            known.set()
            raise error
        known.wait()
        time.sleep(0.05)

    with pytest.raises(type(error)) as caught:
        Workers(2, [f"layer.{i}" for i in range(50)]).map(fails_first, range(50))
    assert len(begun) < 10
    if isinstance(error, ValueError):
        assert caught.value.__notes__ == ["at the weight 'layer.0'"]
