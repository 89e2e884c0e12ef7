"""The scripts of the benchmarks import one another by their names alone."""

from collections.abc import Iterator

import pytest
from tests.support.places import BENCHMARKS


@pytest.fixture(autouse=True, scope="module")
def beside_the_scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield
