"""Codes that earlier releases wrote are read for ever: see golden/make.py."""

import json

import pytest
from tests.support import codes as made
from tests.support import plain_decoder
from tests.support.places import GOLDEN

BLOBS = sorted(GOLDEN.glob("codes-*/*.bin"))


def recorded(blob):
    """Codes as lists, their shape and kernel."""
    content = json.loads(blob.with_suffix(".json").read_text("utf-8"))
    return content["codes"], content["shape"], tuple(content["kernel"])


def test_there_are_golden_blobs_of_every_example():
    assert {blob.stem for blob in BLOBS} >= {name.replace(" ", "-") for name in (*made.EXAMPLES, *made.TRELLISES)}


@pytest.mark.parametrize("blob", BLOBS, ids=lambda blob: f"{blob.parent.name}/{blob.stem}")
def test_golden_codes_are_read(blob):
    codes, shape, kernel = recorded(blob)
    assert made.read(blob.read_bytes(), shape, kernel).tolist() == codes


@pytest.mark.parametrize("blob", BLOBS, ids=lambda blob: f"{blob.parent.name}/{blob.stem}")
def test_golden_codes_are_as_documented(blob):
    codes, shape, kernel = recorded(blob)
    assert plain_decoder.decode(blob.read_bytes(), *shape, kernel) == codes
