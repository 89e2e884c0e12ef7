"""Networks are timed side by side, and what their weights take in memory is counted once."""

import pytest
import torch
from torch import nn

import waterfill
from waterfill.errors import BadInput
from waterfill.runtime import speed


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(40):
            x = x @ torch.eye(200)
        return x


def test_every_network_is_timed_at_every_size() -> None:
    rows = speed({"one": nn.Linear(200, 200), "other": Slow()}, [torch.randn(64, 200)], (1, 64))
    assert [(row.name, row.inputs) for row in rows] == [("one", 1), ("other", 1), ("one", 64), ("other", 64)]
    assert all(row.spread[0] <= row.milliseconds <= row.spread[1] for row in rows)
    assert rows[0].speedup == rows[2].speedup == 1 and rows[3].speedup < 1
    assert [row.memory for row in rows] == [4 * 201 * 200, 0] * 2


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(64, 64)
    packed = waterfill.pack(waterfill.compress(layer, spec="Quantize()", bits=4), nn.Linear(64, 64))
    rows = speed({"dense": nn.Sequential(layer, layer), "packed": packed}, [torch.randn(2, 64)])
    assert rows[0].memory == 4 * 65 * 64 > 4 * rows[1].memory


def test_what_cannot_be_timed_is_refused() -> None:
    net = nn.Linear(3, 3)
    for models, batches, sizes in (({}, [torch.ones(1, 3)], (1,)), ({"a": net}, [], (1,))):
        with pytest.raises(BadInput, match="nothing to time"):
            speed(models, batches, sizes)
    with pytest.raises(BadInput, match="has 2 inputs"):
        speed({"a": net}, [torch.ones(2, 3)], (4,))
