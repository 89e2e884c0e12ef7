"""docs/format.md describes the manifest as it is."""

import json
import re

import torch
from tests.support.places import FORMAT

import waterfill


def test_the_format_document_shows_a_real_manifest():
    tied = torch.randn(10, 8)
    state = {
        "embed.weight": tied,
        "conv.weight": torch.randn(8, 4, 3, 3).bfloat16(),
        "conv.bias": torch.randn(8),
        "head.weight": tied,
        "steps": torch.tensor(7),
    }
    listing = re.search(r"```json\n(.*?)```", FORMAT.read_text("utf-8"), re.DOTALL)
    assert listing, "docs/format.md has no ```json listing"
    assert waterfill.compress(state, price=0.01).manifest == json.loads(listing[1])
