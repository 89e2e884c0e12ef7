"""The benchmark of combinations: a row for every recipe, and a picture in which every line lies within its chart."""

from xml.etree import ElementTree

import pytest
from tests.support.scripts import script


@pytest.fixture
def rows() -> list[list[object]]:
    module = script("combinations")
    made: list[list[object]] = []
    for name in module.NETWORKS:
        made.append([name, "accuracy, %", "", None, 100, 97.0, 0.0, 0.0, ""])
        for i, recipe in enumerate(module.RECIPES):
            for ratio in module.RATIOS:
                made.append([name, "accuracy, %", recipe, ratio, 100, 96.0, 1e-4 * ratio**2 * (i + 1), 1.0, ""])
    made[3][4:] = [None, None, None, 1.0, "cannot be met"]
    return made


def test_all_runs_are_in_the_table(rows: list[list[object]]) -> None:
    module = script("combinations")
    assert module.complete(rows)
    table = module.tables(rows)["quality"]
    assert len(table.rows) == len(module.NETWORKS) * (1 + len(module.RECIPES))
    assert table.rows[1] == ["LeNet-300-100", "Q", 96.0, 96.0, None, 0.0064, 0.0256, None]


def test_every_line_lies_within_its_chart(rows: list[list[object]]) -> None:
    module, picture = script("combinations"), script("lib.picture")
    drawn = ElementTree.fromstring(module.picture(rows))
    dots = [dot for dot in drawn.iter() if dot.tag.endswith("circle")]
    assert len(dots) == len(rows) - len(module.NETWORKS) - 1
    for dot in dots:
        assert picture.LEFT <= float(dot.attrib["cx"]) <= picture.WIDTH - picture.RIGHT
        assert picture.TOP <= float(dot.attrib["cy"]) <= picture.HEIGHT - picture.BOTTOM
