"""Pictures: areas that are the values, axes that hold them, and text that cannot act."""

import xml.etree.ElementTree as ET

import pytest

from waterfill.report.drawing import treemap
from waterfill.report.drawing.axes import Axis
from waterfill.report.drawing.chart import Chart, Series, standalone
from waterfill.report.markup import Markup, element, joined


@pytest.mark.parametrize("values", [[5.0, 3.0, 2.0], [1.0] * 7, [100.0, 1.0, 0.01], [4.0]])
def test_areas_are_in_proportion_and_fill_the_box(values) -> None:
    boxes = treemap.squarified(values, treemap.Box(10, 20, 300, 100))
    areas = [box.width * box.height for box in boxes]
    assert areas == pytest.approx([30_000 * value / sum(values) for value in values])
    for box in boxes:
        assert box.x >= 10 - 1e-9 and box.y >= 20 - 1e-9
        assert box.x + box.width <= 310 + 1e-6 and box.y + box.height <= 120 + 1e-6


def test_areas_do_not_overlap() -> None:
    boxes = treemap.squarified([float(n) for n in range(12, 0, -1)], treemap.Box(0, 0, 90, 60))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            wide = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            high = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert wide < 1e-6 or high < 1e-6


def test_squares_are_as_square_as_can_be() -> None:
    """The example of Bruls, Huizing and van Wijk: 6, 6, 4, 3, 2, 2, 1 in a box of 6 by 4 begin with two of 3 by 2."""
    first, second, *_ = treemap.squarified([6, 6, 4, 3, 2, 2, 1], treemap.Box(0, 0, 6, 4))
    assert (first.width, first.height) == pytest.approx((3, 2)) and (second.width, second.height) == pytest.approx(
        (3, 2)
    )


def test_values_of_nothing_are_no_error() -> None:
    assert all(box.width * box.height == 0 for box in treemap.squarified([0.0, 0.0], treemap.Box(0, 0, 5, 5)))


@pytest.mark.parametrize("values", [[0.0, 1.0], [3.2, 3.3], [1e6, 4e6], [5.0], []])
def test_ticks_lie_on_the_axis(values) -> None:
    axis = Axis.around(values, 0, 100)
    ticks = axis.ticks(6)
    assert 2 <= len(ticks) <= 8 and all(axis.low - 1e-9 <= value <= axis.high + 1e-9 for value, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


def test_a_logarithmic_axis_has_whole_decades() -> None:
    axis = Axis.around([0.02, 30.0, 0.0], 0, 100, logarithmic=True)
    assert (axis.low, axis.high) == pytest.approx((0.01, 100.0))
    assert [axis.place(value) for value in (0.01, 1.0, 100.0)] == pytest.approx([0, 50, 100])
    assert [text for _, text in axis.ticks(9)] == ["0.01", "0.1", "1", "10", "100"]


def test_text_is_escaped_and_markup_is_not() -> None:
    hostile = '<script>alert("x")</script>\u202e'
    shown = element("p", hostile, element("b", "fine"), title=hostile)
    assert "<script" not in shown and "<b>fine</b>" in shown and "\u202e" not in shown
    assert joined("a < b", Markup("<br>")) == "a &lt; b<br>"
    assert element("p", hidden=True, class_=None) == '<p hidden=""></p>'


def test_a_chart_is_a_picture_of_its_points() -> None:
    series = [Series("a & b", [(1.0, 0.5), (2.0, 0.25), (3.0, float("nan"))]), Series("bound", [(1, 0.1)], bound=True)]
    chart = Chart("bits", "nats", "about <it>", series, levels=[("original", 0.9)], logarithmic=True)
    root = ET.fromstring(standalone(chart, ".s0 {}"))
    names = [tag.text for tag in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "bound", "bits", "original"} <= set(names)
    marks = [tag for tag in root.iter("{http://www.w3.org/2000/svg}path")]
    assert len(marks) == 1 + 2  # in the legend, and the two points that can be drawn


def test_the_doors_are_named_and_others_are_not_there() -> None:
    from waterfill import report

    assert all(getattr(report, name).__name__ == name for name in report.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = report.nothing
