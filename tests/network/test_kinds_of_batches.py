"""Batches of the kinds that loaders give: named tuples, packed sequences, streams whose length is not known."""

from collections import namedtuple
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, IterableDataset

from waterfill import Options, Steps, compress, evaluate
from waterfill.network.running.batches import count_of, each_tensor, samples_in, split, spread
from waterfill.network.running.forward import call

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "x scale")
QUICK = Options(steps=Steps(stages=1))


class Scaled(nn.Module):
    """Two arguments, [batch, 32] and [batch, 1], to [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(32, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(x))) * scale


class LastState(nn.Module):
    """Packed sequences of vectors [32] to [sequences, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(32, 24), nn.Linear(24, 10)

    def forward(self, packed: PackedSequence) -> Tensor:
        return self.out(self.rnn(packed)[1][-1])


class Stream(IterableDataset):
    """Inputs one after the other; how many is not said."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


def pairs(size: int) -> list[Pair]:
    return [Pair(x, 2 * torch.ones(len(x), 1)) for x in X.split(size)]


def packed(lengths: list[int]) -> PackedSequence:
    return pack_sequence([X[:length] + number for number, length in enumerate(lengths)], enforce_sorted=False)


def error(made, model: nn.Module, batches: list) -> float:
    """The relative error of the outputs of the compressed model."""
    return evaluate(made.install(type(model)()), batches, reference=model, targets=None, logits=False).output_error


@pytest.mark.parametrize("size", [32, pytest.param(16, marks=pytest.mark.slow)])
def test_named_tuples_are_arguments_and_are_cut_in_two_as_such(size) -> None:
    torch.manual_seed(0)
    model, batches = Scaled().eval(), pairs(size)
    assert error(compress(model, batches, spec="Quantize()", price=1e-7, options=QUICK), model, batches) < 0.02


def test_a_named_tuple_stays_one() -> None:
    fitting, held = split(pairs(32), 0.25)
    assert [type(batch) for batch in fitting + held] == [Pair] * 4
    assert [len(batch.scale) for batch in fitting] == [24, 24] and [len(batch.x) for batch in held] == [8, 8]
    assert torch.equal(torch.cat([fitting[0].x, held[0].x]), X[:32])
    assert type(each_tensor(pairs(32)[0], Tensor.clone)) is Pair


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_packed_sequences_are_one_argument(count) -> None:
    torch.manual_seed(0)
    model, batches = LastState().eval(), [packed([3, 5, 1, 4])] * count
    assert error(compress(model, batches, spec="Quantize()", price=1e-7, options=QUICK), model, batches) < 0.02


def test_packed_sequences_count_as_sequences_and_come_through_unchanged() -> None:
    batch, model = packed([3, 5, 1, 4]), LastState().eval()
    assert samples_in(batch) == samples_in((batch, torch.zeros(4))) == 4
    copied = each_tensor(batch, Tensor.clone)
    assert copied.data is not batch.data and torch.equal(call(model, copied), model(batch))
    scored = evaluate(model, [(batch, model(batch).argmax(1))])
    assert scored.rows == 4 and scored.accuracy == 1
    assert evaluate(model, [batch]).accuracy is None  # its last item, an order, is no target


def test_a_stream_of_unknown_length_is_compressed_as_a_list_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    loader = DataLoader(Stream(), batch_size=16)
    assert count_of(loader) is None and count_of(iter([1])) is None and count_of([1, 2]) == 2
    by_stream, by_list = (
        compress(model, given, spec="Quantize()", bits=4, options=QUICK) for given in (loader, X.split(16))
    )
    for name, value in by_list.state_dict().items():
        assert torch.equal(by_stream.state_dict()[name], value)


def test_a_long_stream_is_thinned_evenly() -> None:
    assert list(spread(iter(range(1000)), 8)) == list(range(0, 1000, 64))
    assert list(spread(iter(range(9)), 8)) == list(range(9))
    assert list(spread(list(range(1000)), 8)) == list(range(0, 1000, 125))
