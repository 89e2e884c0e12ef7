"""What is seen of a running network, and how its inputs become columns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from waterfill.calibration.per_sample import moments, row_weights
from waterfill.calibration.recorder import MomentRecorder, Selection
from waterfill.network.layout import layout_of
from waterfill.network.tracing import recurrent
from waterfill.network.tracing.im2col import all_windows, geometry_of, pick, windows
from waterfill.network.tracing.tracer import Tracer
from waterfill.network.tracing.views import WeightViews

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
GEOMETRIES = [
    ((3,), {"stride": 2, "padding": 1}),
    ((3, 2), {"padding": "same", "dilation": 2}),
    ((2, 3), {"stride": (2, 1), "padding": (0, 1), "groups": 2}),
    ((1, 3, 2), {"padding": (0, 1, 1), "groups": 4}),
    ((1, 1), {"stride": 3}),
]


def traced(module: nn.Module) -> tuple[Tracer, MomentRecorder]:
    """A tracer of all matrices of a module, and what it tells."""
    weights = {name: value.detach() for name, value in module.named_parameters() if value.ndim > 1}
    layouts = {name: layout_of(tuple(value.shape), value.dtype) for name, value in weights.items()}
    recorder = MomentRecorder(layouts, Selection(dict.fromkeys(weights, True)), torch.Generator().manual_seed(0))
    return Tracer(WeightViews(weights, layouts), recorder), recorder


@pytest.mark.parametrize(("kernel", "options"), GEOMETRIES)
def test_a_kernel_times_the_windows_is_the_convolution(kernel, options):
    groups = options.get("groups", 1)
    x = torch.randn(3, 4, *(7, 6, 5)[: len(kernel)])
    weight = torch.randn(8, 4 // groups, *kernel)
    y = CONV[len(kernel)](x, weight, **options)
    geometry = geometry_of(kernel, options)
    found = all_windows(x, geometry, y.shape[2:])
    product = weight.reshape(groups, 8 // groups, -1) @ found
    assert torch.allclose(product.reshape(y.shape), y, atol=1e-5)
    flat = windows(x, geometry, y.shape[2:], torch.Generator())
    assert torch.equal(flat, found.permute(1, 2, 0, 3).flatten(2))


def test_windows_agree_with_unfold():
    x = torch.randn(2, 3, 9, 8)
    geometry = geometry_of((3, 2), {"stride": 2, "padding": 1})
    wanted = F.unfold(x, (3, 2), padding=1, stride=2)
    assert torch.equal(all_windows(x, geometry, (5, 5))[:, 0], wanted)


@pytest.mark.parametrize("positions", [10, 8192, 8193, 100_000])
def test_a_sample_of_the_positions_is_spread_over_all(positions):
    chosen = pick(positions, 12, torch.Generator().manual_seed(0))
    if positions <= 8192:
        assert chosen is None
        return
    assert len(chosen) == 8192 and (chosen.diff() >= 0).all()
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < positions
    assert float(chosen.diff().max()) <= 2 * positions / 8192 + 1


@pytest.mark.parametrize(("rows", "positions"), [(3, 7), (7, 3), (5, 1)])
def test_moments_are_those_of_the_gradient_of_every_sample(rows, positions):
    g, x = torch.randn(6, 2, rows, positions), torch.randn(6, 2, 4, positions)
    weights = torch.rand(2, rows)
    gram, energy = moments(g, lambda some: x[some], 4, weights)
    slope = torch.einsum("ngrp,ngcp->ngrc", g, x)
    assert torch.allclose(gram, torch.einsum("ngrc,ngrd,gr->gcd", slope, slope, weights), rtol=1e-3, atol=1e-4)
    assert torch.allclose(energy, slope.square().sum((0, 3)).reshape(-1).double(), rtol=1e-4)


def test_rows_weigh_alike_and_silent_ones_nothing_special():
    g = torch.randn(8, 1, 4, 5) * torch.tensor([1.0, 10.0, 0.5, 0.0])[:, None]
    weighted = g.square().sum((0, 3)) * row_weights(g)
    assert torch.allclose(weighted[0, :2], torch.ones(2)) and float(weighted[0, 3]) == 0
    assert torch.isfinite(row_weights(torch.zeros(2, 1, 3, 4))).all()


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False, "batch_first": True}]
)
@pytest.mark.parametrize("packed", [False, True])
def test_unrolled_layers_say_what_the_layers_say(mode, options, packed):
    torch.manual_seed(0)
    layer = getattr(nn, mode)(5, 4, **options)
    x = torch.randn(6, 3, 5)
    if packed:
        layer.batch_first = False
        x = nn.utils.rnn.pack_padded_sequence(x, [6, 4, 1])
    wanted, finals = layer(x)
    tracer, recorder = traced(layer)
    with tracer:
        found, states = layer(x)
    if packed:
        wanted, found = wanted.data, found.data
    assert torch.allclose(found, wanted, atol=1e-5)
    for a, b in zip(states if mode == "LSTM" else [states], finals if mode == "LSTM" else [finals], strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert set(recorder.terms) == {name for name, value in layer.named_parameters() if value.ndim > 1}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_states_and_single_cells_are_unrolled_too():
    x = torch.randn(6, 3, 5)
    layer = nn.LSTM(5, 4, proj_size=2)
    tracer, recorder = traced(layer)
    with tracer:
        found = layer(x)[0]
    assert torch.allclose(found, layer(x)[0], atol=1e-5) and "weight_hr_l0" in recorder.terms
    for cell in (nn.LSTMCell(5, 4), nn.GRUCell(5, 4), nn.RNNCell(5, 4, nonlinearity="relu")):
        tracer, recorder = traced(cell)
        with tracer:
            found = cell(x[0])
        wanted = cell(x[0])
        pairs = zip(found, wanted, strict=True) if isinstance(cell, nn.LSTMCell) else [(found, wanted)]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
        assert set(recorder.terms) == {"weight_ih", "weight_hh"}


def test_step_is_the_textbook_gru():
    inputs, gates, h = torch.randn(2, 9), torch.randn(2, 9), torch.randn(2, 3)
    r, z = (torch.sigmoid(inputs[:, k : k + 3] + gates[:, k : k + 3]) for k in (0, 3))
    n = torch.tanh(inputs[:, 6:] + r * gates[:, 6:])
    assert torch.allclose(recurrent.step("gru", inputs, gates, (h,))[0], (1 - z) * n + z * h)


def test_outputs_under_the_eye_are_the_outputs():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    tracer, recorder = traced(layer)
    with tracer:
        found = layer(x)
    assert torch.allclose(found, layer(x), atol=1e-5)
    rows = {key[1:3] for key in recorder.terms["self_attn.in_proj_weight"]}
    assert rows in ({(0, 24)}, {(0, 8), (8, 16), (16, 24)}) and len(recorder.terms) == 4


def test_a_tensor_is_located_in_its_weight():
    layer = nn.Linear(6, 8)
    views = traced(layer)[0].views
    w = layer.weight
    located = {
        "whole": (w, (0, 8), False),
        "turned": (w.T, (0, 8), True),
        "some rows": (w[2:5], (2, 5), False),
        "some rows, turned": (w[2:5].t(), (2, 5), True),
        "a detached one": (w.detach().data, (0, 8), False),
        "as a kernel": (w[:, :, None, None], (0, 8), False),
    }
    for what, (tensor, rows, transposed) in located.items():
        view = views.locate(tensor)
        assert view is not None and (view.rows, view.transposed) == (rows, transposed), what
    for tensor in (w[:, 1:3], w.flatten()[3:9], torch.randn(8, 6), w.clone(), None):
        assert views.locate(tensor) is None


def test_copies_count_as_the_weight_for_one_batch():
    layer = nn.Linear(6, 8)
    tracer, recorder = traced(layer)
    x = torch.randn(4, 6)
    with tracer:
        F.linear(x.double(), layer.weight.double())
    assert recorder.terms["weight"] and not tracer.others
    copy = layer.weight.clone()
    tracer.views.forget()
    assert tracer.views.locate(copy) is None


def test_calls_without_a_rule_are_named():
    layer = nn.Linear(6, 8)
    tracer, recorder = traced(layer)
    with tracer:
        F.linear(torch.randn(4, 6), layer.weight.relu())
    assert tracer.others == {"weight": {"relu"}} and not recorder.terms
