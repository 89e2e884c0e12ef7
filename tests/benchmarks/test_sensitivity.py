"""The benchmark of sensitivity: ranks, and the rows of its table."""

import numpy as np
import pytest
from tests.support.scripts import script

from waterfill.report.comparison.sensitivity import Row, Sensitivity


def test_order_is_one_for_the_same_order_and_minus_one_for_the_other() -> None:
    order = script("sensitivity").order
    values = np.array([0.1, 5.0, 2.0, 100.0])
    assert order(values, values**3) == pytest.approx(1)
    assert order(values, -values) == pytest.approx(-1)


def test_a_row_for_each_number_of_bits() -> None:
    def found(scale: float) -> Sensitivity:
        losses = {"a": 1.0, "b": 3.0, "c": 2.0}
        return Sensitivity([Row(n, (4, 4), {b: scale * v / b for b in (2, 3, 4, 8)}) for n, v in losses.items()], "")

    rows = script("sensitivity").agreement("net", found(1.0), found(2.0), found(0.5))
    assert [row[2] for row in rows] == [2, 3, 4, 8]
    assert all(row[:2] == ["net", 3] and row[3:] == pytest.approx([1, 1, 2]) for row in rows)
