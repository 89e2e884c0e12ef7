"""The benchmark of combinations: a row for every recipe, and a picture in which every line lies within its chart."""

from typing import Any
from xml.etree import ElementTree

import pytest
from tests.support.scripts import script


@pytest.fixture
def known() -> dict[Any, list[Any]]:
    """Made-up figures of all jobs; one could not be met."""
    module, made = script("combinations"), {}
    for job in module.plan():
        lost = 1e-4 * job.ratio**2 * (1 + list(module.RECIPES).index(job.recipe)) if job.ratio else 0.0
        made[job] = ["accuracy, %", 100, 96.0 if job.ratio else 97.0, lost, 1.0, ""]
    made[module.plan()[3]] = ["accuracy, %", None, None, None, 1.0, "cannot be met"]
    return made


def test_all_runs_are_in_the_table(known) -> None:
    module = script("combinations")
    table = module.tables(known)["quality"]
    assert len(table.rows) == len(module.NETWORKS) * (1 + len(module.RECIPES))
    assert table.rows[0][1:3] == ["float32", 97.0]
    assert table.rows[1] == ["LeNet-300-100", "Q", 96.0, 96.0, None, 0.0064, 0.0256, None]


def test_every_line_lies_within_its_chart(known) -> None:
    module, picture = script("combinations"), script("lib.picture")
    rows = module.tables(known)["runs"].rows
    drawn = ElementTree.fromstring(module.picture(rows))
    dots = [dot for dot in drawn.iter() if dot.tag.endswith("circle")]
    assert len(dots) == len(rows) - len(module.NETWORKS) - 1
    for dot in dots:
        assert picture.LEFT <= float(dot.attrib["cx"]) <= picture.WIDTH - picture.RIGHT
        assert picture.TOP <= float(dot.attrib["cy"]) <= picture.HEIGHT - picture.BOTTOM


def test_a_network_that_has_just_begun_has_a_chart(known) -> None:
    module = script("combinations")
    rows = module.tables({job: known[job] for job in module.plan()[:2]})["runs"].rows
    assert "LeNet-300-100" in module.picture(rows)
