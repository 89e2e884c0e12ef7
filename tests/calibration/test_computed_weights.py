"""Weights that are computed from others before they are used, and products in other notations."""

import copy
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from tests.support.calibrated import measured_over_promised
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import waterfill
from waterfill.compression.steps.compensate import Compensation
from waterfill.network.layout import layout_of
from waterfill.network.tracing.derived import multiple_of_rows
from waterfill.network.tracing.einsum import product_of


class Standardized(nn.Conv2d):
    """A convolution with weights of mean 0 and deviation 1 / sqrt(fan-in) in every row."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) * rows.shape[1] ** 0.5)
        return F.conv2d(x, rows.view_as(self.weight), self.bias)


class Scaled(nn.Linear):
    """A linear layer whose weights are stored large."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.1, self.bias)


def old_weight_norm() -> nn.Module:
    """Weight norm as a hook, with directions and lengths as parameters of the layer."""
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Conv1d(12, 24, 3))


DIRECTION = "parametrizations.weight.original1"
COMPUTED = {
    "weight norm": (lambda: weight_norm(nn.Conv1d(12, 24, 3)), DIRECTION),
    "old weight norm": (old_weight_norm, "weight_v"),
    "weight norm, transposed": (
        lambda: weight_norm(nn.ConvTranspose1d(12, 24, 3)),
        "parametrizations.weight.original1",
    ),
    "spectral norm": (lambda: spectral_norm(nn.Linear(9, 60)), "parametrizations.weight.original"),
    "scaled": (lambda: Scaled(9, 60), "weight"),
    "standardized": (lambda: Standardized(12, 24, (1, 3)), "weight"),
}


def network(kind: str) -> tuple[nn.Module, Tensor, str]:
    """A network with such a layer in front, inputs that correlate, and the name of its weight."""
    torch.manual_seed(0)
    make, name = COMPUTED[kind]
    model = nn.Sequential(make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randn(96, 12, 9) @ (torch.logspace(0, -1, 9)[:, None] * torch.randn(9, 9))
    x = x.unsqueeze(2) if kind == "standardized" else x
    with torch.no_grad():
        weight = model.state_dict()[f"0.{name}"]
        weight.mul_(torch.rand(len(weight)).add(0.5).reshape(-1, *[1] * (weight.ndim - 1)))  # lengths of rows differ
        model(x)
    return model, x, f"0.{name}"


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_others_are_computed_from_costs_what_is_measured(kind):
    model, x, name = network(kind)
    found = waterfill.calibrate(model, x.split(24), probes=8)
    assert found[name].gram is not None and name not in found.notes
    assert 0.6 < measured_over_promised(model, x.split(24), found, name) < 1.6


SLOW = {
    "scaled",
    "spectral norm",
    "old weight norm",
    "weight norm, transposed",
}  # what their errors cost is measured above


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in COMPUTED])
def test_it_is_compressed_with_its_own_metric(kind):
    model, x, name = network(kind)
    quick = waterfill.Options(steps=waterfill.Steps(stages=1, repair=False))
    small = waterfill.compress(model, x[:64].split(16), spec="Quantize()", bits=5, options=quick)
    entry = next(row for row in small.table() if row["name"] == name)
    assert entry["reason"] == "" and entry["warning"] == ""
    blind = waterfill.compress(model, bits=5)
    errors = []
    for made in (small, blind):
        again = made.install(network(kind)[0]).eval()
        with torch.no_grad():
            errors.append(float((again(x[64:]) - model(x[64:])).square().mean()))
    assert errors[0] < 0.85 * errors[1]


def test_kernels_stay_kernels_where_they_are_computed_from_something():
    for layer in (weight_norm(nn.Conv1d(12, 24, 3)), nn.Sequential(weight_norm(nn.Conv2d(12, 24, 3)))):
        name = next(name for name, value in layer.state_dict().items() if value.numel() > 100)
        made = waterfill.compress(layer, bits=8)
        assert made.entries[name].layout.kernel == layer.state_dict()[name].shape[2:]


def test_multiples_of_rows_are_told_from_numbers():
    torch.manual_seed(0)
    weight, factors = torch.randn(7, 12), torch.rand(7) + 0.5
    weight[3] = 0
    found = multiple_of_rows(weight, factors[:, None] * weight, (7, 12))
    others = [0, 1, 2, 4, 5, 6]
    assert found is not None and torch.allclose(found[0][others], factors[others]) and not found[1]
    assert float(found[0][3]) == pytest.approx(float(factors[others].mean()))
    assert torch.equal(multiple_of_rows(weight, weight, (7, 12))[0], torch.ones(7))
    assert multiple_of_rows(weight, weight.bfloat16(), (7, 12)) is not None
    moved = multiple_of_rows(weight, factors[:, None] * weight + torch.randn(7, 1), (7, 12))
    assert moved is not None and moved[1] and torch.allclose(moved[0][others], factors[others], rtol=1e-3)
    other = [
        torch.zeros(7, 12),
        torch.ones(7, 12),
        torch.randn(7, 12),
        weight + torch.randn(12),
        weight * torch.rand(12),
    ]
    assert all(multiple_of_rows(weight, result, (7, 12)) is None for result in [*other, weight.round()])
    stack = torch.randn(3, 4, 5)
    assert torch.allclose(multiple_of_rows(stack, 2 * stack, (4, 5))[0], torch.full((4,), 2.0))


class Notation(nn.Module):
    """Weights used in equations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rows = nn.Parameter(torch.randn(8, 6) / 3)
        self.turned = nn.Parameter(torch.randn(8, 8) / 3)
        self.expert_in = nn.Parameter(torch.randn(3, 10, 8) / 3)
        self.expert_out = nn.Parameter(torch.randn(3, 10, 8) / 3)
        self.pairs = nn.Bilinear(8, 8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(torch.einsum("...i,oi->...o", x, self.rows))
        x = torch.tanh(torch.einsum("io, bti -> tbo", self.turned, x))
        hidden = torch.tanh(torch.einsum("tbi,ehi->ebth", x, self.expert_in))
        x = torch.einsum("ebth,eho->betho", hidden, self.expert_out).sum((1, 3))  # no product of matrices
        x = x + torch.einsum("ebth,eho->ebto", [hidden, self.expert_out]).sum(0)
        return self.pairs(torch.tanh(x), torch.tanh(x.flip(-1)))


def test_products_in_any_notation_cost_what_is_measured():
    model, x = Notation(), torch.randn(32, 5, 6)
    found = waterfill.calibrate(model, [x], probes=8)
    assert not found.unreached
    for name in found:
        assert found[name].gram is not None or model.state_dict()[name].ndim == 1
        assert 0.5 < measured_over_promised(model, [x], found, name) < 2, name


def test_pairs_of_inputs_are_the_columns_of_a_bilinear_layer():
    torch.manual_seed(0)
    a, b = torch.randn(50, 3), torch.randn(50, 4)
    found = waterfill.calibrate(nn.Bilinear(3, 4, 5), [(a, b)])["weight"]
    pairs = (a[:, :, None] * b[:, None]).flatten(1)
    assert torch.allclose(found.gram, pairs.T @ pairs / 50, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", ["oi", "io", "eoi", "eio"])
def test_an_equation_is_the_product_that_it_is_taken_for(weight):
    torch.manual_seed(0)
    sizes = dict(zip("oieab", (2, 3, 4, 5, 6), strict=True))
    stacked = weight[:-2]
    for x in map("".join, permutations("iab")) if not stacked else ("iab", "eaib", "bei", "ieb"):
        for y in map("".join, permutations(stacked + x.replace("i", "o").replace("e", ""))):
            for at, equation in enumerate((f"{weight},{x}->{y}", f"{x},{weight}->{y}")):
                factors = [torch.randn([sizes[letter] for letter in term]) for term in (weight, x)]
                w = factors[0] if weight.endswith("oi") else factors[0].mT
                given = factors if at == 0 else factors[::-1]
                product = product_of(equation, [f.ndim for f in given], at, weight.endswith("io"))
                wanted = torch.einsum(equation, *given)
                assert product is not None and not product.mixes
                seen = wanted.permute(product.outputs)
                inputs = product.inputs_of(factors[1], seen.shape)
                if stacked:
                    place = product.outputs.index(y.index("e"))
                    found = (inputs.movedim(place, 0).flatten(1, -2) @ w.mT).reshape(seen.movedim(place, 0).shape)
                    found = found.movedim(0, place)
                else:
                    found = inputs @ w.mT
                assert torch.allclose(found.permute(product.back), wanted, atol=1e-5), equation


@pytest.mark.parametrize(
    "equation",
    ["bi,oi->b", "bi,oi->oib", "boi,oi->bo", "bei,eoi->bo", "bb,bo->bo", "bi,oi", "i...,oi...->o...", "bi,oi,bo->bo"],
)
def test_other_equations_are_no_products_of_a_matrix(equation):
    dims = [len(term.replace("...", "z")) for term in equation.partition("->")[0].split(",")]
    assert product_of(equation, dims, 1, False) is None


class Less(nn.Linear):
    """A linear layer that takes half of its weight off it, or of each row the mean."""

    mean = False

    def forward(self, x: Tensor) -> Tensor:
        less = self.weight.mean(1, keepdim=True) if self.mean else 0.5 * self.weight
        return F.linear(x, self.weight - less, self.bias)


def targets(layer: nn.Module) -> dict[str, Tensor]:
    """The targets in a chain with this layer in the middle, where the layer before it has errors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), layer, nn.Linear(7, 3))
    other, x = copy.deepcopy(model), torch.randn(64, 4) @ torch.randn(4, 12)
    with torch.no_grad():
        other[0].weight.add_(0.1 * torch.randn(10, 12))
    layouts = {name: layout_of(tuple(value.shape), value.dtype) for name, value in model.named_parameters()}
    run = Compensation(model, other, [x], layouts)
    return run.targets(run.order())


def test_multiples_of_rows_have_the_targets_of_what_they_multiply_and_moved_rows_have_none():
    layer, plain = Less(10, 7), nn.Linear(10, 7)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        plain.weight.mul_(0.5)
    found, wanted = targets(layer), targets(plain)
    assert torch.allclose(0.5 * found["2.weight"], wanted["2.weight"], atol=1e-5)
    assert not torch.allclose(found["2.weight"], layer.weight, atol=1e-3)
    layer.mean = True
    assert targets(layer).keys() == wanted.keys() - {"2.weight"}
