"""Files that earlier releases wrote are read for ever, to the bit: see golden/models.py."""

import json

import pytest
from tests.golden.models import digests
from tests.support.places import GOLDEN

import waterfill

FILES = sorted(GOLDEN.glob("models-*/*.wf"))
KINDS = {"quantized", "fixed-rate", "codebook", "sum", "pruned", "low-rank", "sampled", "lossless"}


def test_there_is_a_golden_file_of_every_kind():
    assert {path.stem for path in FILES if path.parent.name == "models-1"} >= KINDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_files_are_read_to_the_bit(path):
    recorded = json.loads(path.with_suffix(".json").read_text("utf-8"))
    model = waterfill.load(path)
    assert digests(model.state_dict()) == recorded["tensors"]
    assert (model.aliases, model.notes) == (recorded["aliases"], recorded["notes"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_files_give_single_tensors(path):
    recorded = json.loads(path.with_suffix(".json").read_text("utf-8"))["tensors"]
    found = {name: waterfill.load_tensor(path, name) for name in recorded}
    assert digests(found) == recorded
