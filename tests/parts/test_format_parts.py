"""docs/format.md and docs/parts.md define what is computed: a reader made from them alone restores the same bits."""

import pytest
import torch
from tests.support import plain_parts
from tests.support.places import GOLDEN

from waterfill import LowRank, load, load_tensor, parse
from waterfill.coding.stream import Reader
from waterfill.importance import Importance
from waterfill.storage import FileReader


def bits(values: object) -> list[int]:
    return torch.as_tensor(values, dtype=torch.float32).contiguous().view(torch.int32).reshape(-1).tolist()


@pytest.mark.parametrize("name", ["low-rank", "sum"])
def test_golden_files_are_restored_as_documented(name: str) -> None:
    path, seen = GOLDEN / f"models-1/{name}.wf", 0
    entries = load(path).entries
    with FileReader(path) as src:
        for own, entry in entries.items():
            layout, blob = entry.layout, src.blob(own)
            if layout.dtype == torch.float32 and Reader(blob).uint(100) in plain_parts.KINDS:
                assert bits(plain_parts.restore(blob, layout.count, *layout.matrix)) == bits(load_tensor(path, own))
                seen += 1
    assert seen >= 5


@pytest.mark.parametrize(
    "recipe",
    [
        "LowRank(rank=7)",
        "LowRank(rank=5, factors=Codebook(levels=8))",
        "LowRank(rank=2) + Codebook(values='ternary') + Quantize()",
        "LowRank(rank=3, factors=LowRank(rank=2))",
    ],
)
def test_new_parts_are_restored_as_documented(recipe: str) -> None:
    part = parse(recipe).fit(torch.randn(21, 19), Importance(rows=torch.logspace(-1, 1, 21)), 1e-4)
    assert bits(plain_parts.restore(part.encode(), 1, 21, 19)) == bits(part.dense())


def test_no_rank_is_plus_zero() -> None:
    part = LowRank(rank=0).fit(torch.ones(3, 4), Importance(), 1.0)
    assert bits(plain_parts.restore(part.encode(), 1, 3, 4)) == bits(part.dense()) == [0] * 12
