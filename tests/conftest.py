"""Shared by all tests: fixed seeds, one thread, hypothesis profiles, the optional folder of real networks and data."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
os.environ["WATERFILL_CACHE"] = "off"  # neither reads nor leaves anything in the home of whoever runs the tests

# Derandomized: a test that passed yesterday passes today. `--hypothesis-profile=thorough` looks further.
hypothesis.settings.register_profile("fast", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None, derandomize=True)
hypothesis.settings.load_profile("fast")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in the same order on every machine, and no more threads than test processes."""
    torch = sys.modules.get("torch")  # tests of the coder need no torch, and do not pay for importing it
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in a test whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of trained networks and data sets: `WATERFILL_DATA`, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("WATERFILL_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the folder of trained networks and data, and {folder} is not there: set WATERFILL_DATA")
    return folder


@pytest.fixture(scope="session")
def data_file(data_dir: Path) -> Callable[[str], Path]:
    """`data_file(name)` is the path of one file of the data folder; the test is skipped if it is not there."""

    def find(name: str) -> Path:
        path = data_dir / name
        if not path.is_file():
            pytest.skip(f"needs {name}, which is not in {data_dir}")
        return path

    return find
