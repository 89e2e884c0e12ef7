"""Bytes of any sort through the whole reader: mutated seeds, past crashers, and a bounded run of the fuzzer."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.targets import LAYOUTS, read_blob, read_file, seeds
from tests.support.places import CHECKOUT

CRASHERS = sorted((CHECKOUT / "tests" / "fuzz" / "crashers").iterdir())
SECONDS = 60


@pytest.fixture(scope="module")
def corpus() -> dict[str, bytes]:
    return seeds()


def test_the_seeds_are_read_whole(corpus):
    for name, data in corpus.items():
        (read_file if name == "file" else read_blob)(data)
    assert len(corpus) > 30


@pytest.mark.parametrize("path", CRASHERS, ids=lambda path: path.name)
def test_past_crashers_are_refused(path):
    (read_file if path.name.startswith("file-") else read_blob)(path.read_bytes())


@given(st.binary(max_size=60))
def test_any_bytes_as_a_file(data):
    read_file(b"\x89WF\n\x01\x00" + data)


@given(st.integers(0, len(LAYOUTS) - 1), st.integers(0, 9), st.binary(max_size=60))
def test_any_bytes_as_a_blob(layout, kind, data):
    read_blob(bytes([layout, kind]) + data)


def mutated(random: np.random.Generator, data: bytes) -> bytes:
    """A few bytes changed, cut out, or doubled."""
    out = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(1, len(out))) if len(out) > 1 else 0
        match random.integers(4):
            case 0:
                out[at] ^= 1 << int(random.integers(8))
            case 1:
                out[at] = int(random.choice([0, 1, 127, 128, 255]))
            case 2:
                del out[at : at + int(random.integers(1, 5))]
            case 3:
                out[at:at] = out[at : at + 4]
        out = out or bytearray(1)
    return bytes(out)


@pytest.mark.parametrize("rounds", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_seeds(corpus, rounds):
    random = np.random.default_rng(rounds)
    for name, data in corpus.items():
        for _ in range(rounds):
            (read_file if name == "file" else read_blob)(mutated(random, data))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["file", "blob"])
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="needs atheris, which has no release for every Python: pip install .[fuzz]",
)
def test_a_minute_of_fuzzing(target, tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.fuzz_load", target, f"-max_total_time={SECONDS}", "-rss_limit_mb=4096"]
    ran = subprocess.run(
        [*command, "-timeout=10", f"-artifact_prefix={tmp_path}/"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
        check=False,
    )
    found = [path.name for path in tmp_path.iterdir()]
    assert ran.returncode == 0 and not found, f"{found}: keep it in tests/fuzz/crashers\n{ran.stderr[-3000:]}"
