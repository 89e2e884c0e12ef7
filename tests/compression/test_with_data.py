"""The whole way with data: the budget holds, data help, order helps, and what cannot work says so."""

import copy
import functools

import pytest
import torch
from tests.support.small_networks import Normed, Tokens, images, lively, parameters
from torch import Tensor, nn

import waterfill
from waterfill.compression.options import Steps
from waterfill.errors import BadInput, BudgetError


class Deep(nn.Module):
    """Layers whose inputs are as correlated as those of real networks."""

    def __init__(self, middle: int = 2, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(middle))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for layer in self.middle:
            x = torch.relu(layer(x)) + 0.5 * x
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def deep() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Deep().eval()


@pytest.fixture(scope="module")
def shallow() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Deep(middle=1, width=16).eval()


def smooth(count: int, seed: int) -> Tensor:
    """Images whose neighbors correlate."""
    return nn.functional.interpolate(images(count, seed)[:, :, :4, :4], scale_factor=2, mode="bilinear")


def output_error(model: nn.Module, compressed: waterfill.CompressedModel, x: Tensor) -> float:
    """The relative error of the outputs."""
    with torch.no_grad():
        wanted, found = model(x), compressed.install(copy.deepcopy(model))(x)
    return float((found - wanted).norm() / wanted.norm())


BATCHES = list(smooth(96, 7).split(32))
HELD_OUT = smooth(64, 8)


def test_data_and_order_lower_the_error_of_outputs_at_equal_bytes(deep) -> None:
    blind = waterfill.compress(deep, bits=2.6)
    steps = Steps(stages=0, repair=False)
    at_once = waterfill.compress(deep, BATCHES, spec="Quantize()", bits=2.6, options=waterfill.Options(steps=steps))
    in_order = waterfill.compress(
        deep, BATCHES, spec="Quantize()", bits=2.6, options=waterfill.Options(steps=Steps(repair=False))
    )
    errors = [output_error(deep, model, HELD_OUT) for model in (blind, at_once, in_order)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.9 * errors[1]
    for model in (at_once, in_order):
        assert 0.97 * blind.size < model.size <= int(2.6 * model.weights / 8)


def test_the_model_and_its_modes_stay_as_they_were(shallow) -> None:
    model = copy.deepcopy(shallow).train()
    before = parameters(model)
    waterfill.compress(model, BATCHES[:1], spec="Quantize()", price=1e-4)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_file_with_folded_norms_loads_into_the_users_own_class(tmp_path) -> None:
    model = lively(Normed, images(64))
    quick = waterfill.Options(steps=Steps(stages=2, repair=False))
    made = waterfill.compress(model, [images(16, 2), images(16, 3)], spec="Quantize()", price=1e-5, options=quick)
    assert made.notes["folded"] and made.notes["samples"] == 32
    made.save(tmp_path / "normed.wf")
    again = waterfill.load(tmp_path / "normed.wf")
    assert output_error(model, again, images(32, 4)) < 0.2
    steps = Steps(fold=False, stages=0, repair=False)
    options = waterfill.Options(steps=steps)
    kept = waterfill.compress(model, [images(8, 2)], spec="Quantize()", price=1e-5, options=options)
    assert not kept.notes["folded"]


def test_recurrent_layers_and_embeddings_take_part() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tokens().eval()
    tokens = torch.randint(0, 20, (24, 12), generator=torch.Generator().manual_seed(1))
    made = waterfill.compress(model, list(tokens.split(8)), spec="Quantize()", price=1e-5)
    assert made.notes["unreached"] == []
    with torch.no_grad():
        wanted, found = model(tokens)[0], made.install(copy.deepcopy(model))(tokens)[0]
    assert float((found - wanted).norm() / wanted.norm()) < 0.3


def test_a_weight_that_no_batch_reaches_is_named(shallow) -> None:
    model = copy.deepcopy(shallow)
    model.unused = nn.Linear(24, 24)
    made = waterfill.compress(model, BATCHES[:1], spec="Quantize()", price=1e-7)
    assert made.notes["unreached"] == ["unused.weight"]
    assert made.entries["unused.weight"].error < 1


def test_every_kind_of_budget_is_kept(shallow) -> None:
    weights = sum(p.numel() for p in shallow.parameters())
    options = waterfill.Options(steps=Steps(stages=1, repair=False))
    compress = functools.partial(waterfill.compress, shallow, BATCHES[:1], spec="Quantize()", options=options)
    assert compress(size=weights // 2).size <= weights // 2
    assert compress(ratio=10).size <= 4 * weights // 10
    assert compress(price=1e-3).size < compress(price=1e-6).size
    with pytest.raises(BudgetError):
        compress(size=100)


def test_one_sample_is_enough(shallow) -> None:
    made = waterfill.compress(shallow, [BATCHES[0][:1]], spec="Quantize()", bits=4)
    assert output_error(shallow, made, HELD_OUT) < 0.3


def test_dead_inputs_do_no_harm(shallow) -> None:
    model = copy.deepcopy(shallow)
    with torch.no_grad():
        model.first.weight[:6] = 0
        model.first.bias[:6] = -1  # channels that are never positive: zero columns in the next Gram matrix
    made = waterfill.compress(model, BATCHES, bits=4)
    assert output_error(model, made, HELD_OUT) < 0.2


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "no batches"),
        (iter([BATCHES[0]]), "several times"),
        (BATCHES[0], "one batch alone"),
        ([torch.randn(4, 5, 8, 8)], "cannot take"),
        ([torch.full((4, 3, 8, 8), torch.nan)], "NaN"),
    ],
)
def test_batches_that_cannot_work_are_refused(shallow, batches, said) -> None:
    with pytest.raises(BadInput, match=said):
        waterfill.compress(shallow, batches, bits=3)


@pytest.mark.slow
def test_what_was_found_first_is_kept_where_no_second_way_meets_the_budget() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4)]
    model, batches = nn.Sequential(*layers), torch.randn(64, 16).split(16)
    assert waterfill.compress(model, batches, size=388).size <= 388
