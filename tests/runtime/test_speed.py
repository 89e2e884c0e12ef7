"""Networks are timed side by side, and what their weights take in memory is counted once."""

import pytest
import torch
from torch import nn

import waterfill
from waterfill.errors import BadInput
from waterfill.runtime import as_type, speed


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
    assert all(row.speedup_spread == (1, 1) for row in rows if row.name == "one")
    slow = rows[3].speedup_spread
    assert slow is not None and 0 < slow[0] <= slow[1] < 1


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


def test_the_peak_holds_weights_and_what_a_run_keeps_at_once() -> None:
    net = nn.Sequential(nn.Linear(100, 4000, bias=False), nn.ReLU(), nn.Linear(4000, 10, bias=False))
    rows = speed({"net": net, "half": as_type(net, torch.bfloat16)}, [torch.randn(64, 100)], (1, 64))
    one, half, many, _ = (row.peak for row in rows)
    assert many is not None and one is not None and half is not None
    assert one == rows[0].memory + 2 * 4 * 4000  # a hidden vector, and that of the rectifier
    assert many == rows[0].memory + 64 * 2 * 4 * 4000
    assert half < 0.6 * one


def test_a_network_in_another_type_is_a_copy_that_takes_the_same_inputs() -> None:
    net, x = nn.Linear(8, 4), torch.randn(3, 8)
    narrow = as_type(net, torch.bfloat16)
    assert narrow(x).dtype == torch.bfloat16 and narrow(input=x).shape == (3, 4) and net(x).dtype == torch.float32
    assert torch.allclose(narrow(x).float(), net(x), atol=0.1)


class Several(nn.Module):
    """One of each kind that counts, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(30, 16), nn.Conv1d(16, 24, 3, groups=2)
        self.up, self.rnn = nn.ConvTranspose1d(24, 16, 2), nn.GRU(16, 20, batch_first=True, bidirectional=True)
        self.head = nn.Linear(40, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.up(self.conv(self.table(tokens).mT)).mT
        return self.head(self.rnn(x)[0])


def test_multiplications_are_those_that_pruning_channels_counts() -> None:
    tokens = torch.arange(24).view(2, 12)
    net = Several().eval()
    pruned = waterfill.prune_channels(net, [tokens], keep=0.75)
    rows = speed({"before": net, "after": pruned.model}, [tokens])
    assert tuple(row.macs for row in rows) == pruned.macs
    assert rows[1].macs_share == pruned.macs_share < 1 == rows[0].macs_share
    assert pruned.macs[0] == 10 * 24 * 8 * 3 + 10 * 24 * 16 * 2 + 11 * 2 * 60 * (16 + 20) + 11 * 40 * 10


def test_packed_layers_count_what_their_parts_take() -> None:
    tokens, net = torch.arange(24).view(2, 12), Several().eval()
    codes, thin, few = (
        waterfill.pack(waterfill.compress(net, spec=spec, price=1e-9), Several())
        for spec in ("Quantize(bits=4)", {"head": "LowRank(rank=2)"}, {"head": "Prune(keep=0.25)"})
    )
    whole, same, factors, entries = (r.macs for r in speed({"net": net, "a": codes, "b": thin, "c": few}, [tokens]))
    assert whole == same
    assert whole is not None and factors == whole - 11 * 400 + 11 * 2 * (40 + 10) and entries == whole - 11 * 300
