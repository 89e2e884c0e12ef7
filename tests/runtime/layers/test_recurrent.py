"""Recurrent layers that run packed: the recurrence of the restored weights, whatever their form."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.packed import close, pair
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from waterfill.errors import BadInput

RECIPES = ["Quantize()", "Codebook(levels=6)", "LowRank(rank=3)", "Quantize() + Prune(keep=0.02)", "Prune(keep=0.1)"]


def states(layer: nn.RNNBase, batch: tuple[int, ...]) -> "Tensor | tuple[Tensor, ...]":
    """Random ones."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    hidden = torch.randn(count, *batch, layer.proj_size or layer.hidden_size)
    return (hidden, torch.randn(count, *batch, layer.hidden_size)) if layer.mode == "LSTM" else hidden


def doubled(value: "Tensor | tuple[Tensor, ...]") -> "Tensor | tuple[Tensor, ...]":
    return value.double() if isinstance(value, Tensor) else tuple(v.double() for v in value)


def flat(made: object) -> list[Tensor]:
    """The tensors of an output, its state behind it."""
    return [made] if isinstance(made, Tensor) else [tensor for part in made for tensor in flat(part)]


@st.composite
def layers(draw: st.DrawFn) -> nn.RNNBase:
    kind = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    torch.manual_seed(draw(st.integers(0, 1 << 20)))
    extra = {"proj_size": 20} if kind is nn.LSTM and draw(st.booleans()) else {}
    extra |= {"nonlinearity": draw(st.sampled_from(["tanh", "relu"]))} if kind is nn.RNN else {}
    return kind(
        70,
        48,
        draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        **extra,
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@given(layers(), st.sampled_from(RECIPES), st.sampled_from([1, 5]), st.sampled_from([None, 1, 3]), st.booleans())
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_every_kind_of_layer(layer: nn.RNNBase, recipe: str, time: int, batch: int | None, begun: bool) -> None:
    packed, dense = pair(layer, recipe)
    shape = (time, 70) if batch is None else (batch, time, 70) if layer.batch_first else (time, batch, 70)
    x, hx = torch.randn(shape), states(layer, () if batch is None else (batch,)) if begun else None
    found, wanted = packed(x, hx), dense(x.double(), None if hx is None else doubled(hx))
    assert all(close(a, b, 2e-3) for a, b in zip(flat(found), flat(wanted), strict=True))
    assert torch.equal(packed.weight_ih_l0, dense.weight_ih_l0.float())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@torch.no_grad()
def test_sequences_of_several_lengths(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layer = kind(70, 48, 2, bidirectional=True)
    packed, dense = pair(layer, "Quantize()")
    x, hx, lengths = torch.randn(6, 3, 70), states(layer, (3,)), torch.tensor([2, 6, 3])
    results = [
        net(pack_padded_sequence(given, lengths, enforce_sorted=False), own)
        for net, given, own in ((packed, x, hx), (dense, x.double(), doubled(hx)))
    ]
    (found, found_end), (wanted, wanted_end) = ((pad_packed_sequence(y)[0], end) for y, end in results)
    assert close(found, wanted, 1e-5)
    assert all(close(a, b, 1e-5) for a, b in zip(flat(found_end), flat(wanted_end), strict=True))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@torch.no_grad()
def test_cells(kind: type[nn.RNNCellBase]) -> None:
    packed, dense = pair(kind(70, 48), "Quantize()")
    for shape, begun in itertools.product(((70,), (3, 70)), (True, False)):
        x, hidden = torch.randn(shape), torch.randn(*shape[:-1], 48)
        hx = ((hidden, hidden.clone()) if kind is nn.LSTMCell else hidden) if begun else None
        found, wanted = packed(x, hx), dense(x.double(), None if hx is None else doubled(hx))
        assert all(close(a, b, 2e-3) for a, b in zip(flat(found), flat(wanted), strict=True))


@torch.no_grad()
def test_a_step_runs_from_the_packed_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, dense = pair(nn.LSTM(70, 48, 2), "Quantize()")
    for term in packed.terms():
        monkeypatch.setattr(term, "block", lambda *_: pytest.fail("restored"), raising=False)
    x = torch.randn(1, 1, 70)
    assert close(packed(x)[0], dense(x.double())[0], 1e-3)


def test_what_does_not_fit_is_refused() -> None:
    packed, _ = pair(nn.LSTM(70, 48), "Quantize()")
    with pytest.raises(BadInput, match="70 features"):
        packed(torch.zeros(3, 2, 69))
    with pytest.raises(BadInput, match="state"):
        packed(torch.zeros(3, 2, 70), (torch.zeros(1, 3, 48), torch.zeros(1, 3, 48)))
    with pytest.raises(BadInput, match="no gradients"):
        packed(torch.zeros(3, 2, 70, requires_grad=True))
