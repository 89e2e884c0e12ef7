"""What the layers before do to the inputs of a weight, and targets that make up for it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.small_networks import Normed, Tokens, disturbed, images, lively
from torch import Tensor, nn

from waterfill.compression.steps import compensate
from waterfill.compression.steps.compensate import Compensation
from waterfill.network.layout import Layout, layout_of


class Sliced(nn.Module):
    """An in-projection read in slices of rows and transposed, one layer used twice, and one that is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.joint = nn.Parameter(torch.randn(36, 16) / 4)
        self.again = nn.Linear(12, 12)
        self.out = nn.Linear(12, 8, bias=False)
        self.tied = nn.Linear(12, 8, bias=False)
        self.tied.weight = self.out.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        q, k = F.linear(x, self.joint[:12]), x @ self.joint[12:24].T
        x = self.again(torch.relu(self.again(q * torch.sigmoid(k))))
        return self.out(x) + self.tied(torch.relu(F.linear(torch.sin(x), self.again.weight)))


class Experts(nn.Module):
    """Stacked matrices, an embedding, and a layer that sees both."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.experts = nn.Parameter(torch.randn(3, 16, 16) / 4)
        self.head = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(torch.relu(torch.bmm(x, self.experts.mT[: len(x)])) + x @ self.experts[0])


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """Of all matrices, each under its first name."""
    return {n: layout_of(tuple(p.shape), p.dtype) for n, p in model.named_parameters() if p.ndim > 1}


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


def two_layers() -> nn.Module:
    return chain(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 10))


def correlated(count: int, seed: int) -> Tensor:
    """Vectors [count, 12] of four causes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 12, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, 12, generator=generator)
    return torch.randn(count, 4, generator=generator) @ mixing + 0.1 * noise


def perturbed(model: nn.Module, name: str, size: float = 0.2) -> nn.Module:
    """A copy with relative noise on one weight."""
    copied = copy.deepcopy(model)
    weight = copied.get_parameter(name).data
    weight += size * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    return copied


def with_targets(model: nn.Module, targets: dict[str, Tensor]) -> nn.Module:
    copied = copy.deepcopy(model)
    copied.load_state_dict(targets, strict=False)
    return copied


def output_error(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - other(x)).norm() / model(x).norm())


BUILDS = {
    "linear": (two_layers, correlated(96, 1)),
    "images": (lambda: lively(Normed, images(32)), images(24, 1)),
    "tokens": (Tokens, torch.randint(0, 20, (16, 10), generator=torch.Generator().manual_seed(1))),
    "slices": (Sliced, torch.randn(40, 8, generator=torch.Generator().manual_seed(1))),
    "experts": (Experts, torch.randint(0, 20, (3, 10), generator=torch.Generator().manual_seed(1))),
}


@pytest.mark.parametrize("kind", BUILDS)
def test_without_drift_the_targets_are_the_weights(kind) -> None:
    build, x = BUILDS[kind]
    model = build().eval()
    found = Compensation(model, copy.deepcopy(model), list(x.split(8)), layouts_of(model))
    order = found.order()
    assert set(order) <= set(layouts_of(model)) and order
    targets = found.targets(order)
    assert targets
    for name, target in targets.items():
        assert torch.equal(target, model.state_dict()[name]), name


@pytest.mark.parametrize(("kind", "first"), [("linear", "0.weight"), ("images", "conv1.weight"), ("slices", "joint")])
def test_targets_make_up_for_the_layers_before_on_other_inputs(kind, first) -> None:
    build, _ = BUILDS[kind]
    made = {"linear": correlated, "images": images, "slices": lambda n, seed: correlated(n, seed)[:, :8]}[kind]
    model = build().eval()
    compressed = perturbed(model, first)
    names = Compensation(model, compressed, list(made(256, 1).split(64)), layouts_of(model))
    order = {name: uses for name, uses in names.order().items() if name != first}
    others = made(256, 2)
    before = output_error(model, compressed, others)
    one_by_one = compressed
    for name, uses in order.items():
        run = Compensation(model, one_by_one, list(made(256, 1).split(64)), layouts_of(model))
        one_by_one = with_targets(one_by_one, run.targets({name: uses}))
    assert output_error(model, one_by_one, others) < 0.9 * before


def test_a_lost_channel_that_another_tells_is_made_up_for_whole() -> None:
    model = chain(nn.Linear(6, 4, bias=False), nn.Linear(4, 5, bias=False))
    with torch.no_grad():
        model[0].weight[1] = 2 * model[0].weight[0]
    compressed = copy.deepcopy(model)
    compressed[0].weight.data[1] = 0
    x = torch.randn(400, 6)
    target = Compensation(model, compressed, [x], layouts_of(model)).targets({"1.weight": 1})["1.weight"]
    wanted = model[1].weight.detach().clone()
    wanted[:, 0] += 2 * wanted[:, 1]
    kept = [0, 2, 3]
    assert torch.allclose(target[:, kept], wanted[:, kept], atol=0.03)


def test_inputs_that_tell_nothing_of_the_original_ones_are_shut_out() -> None:
    """Inputs that have nothing to do with those that the weight was made for are best not listened to."""
    model = chain(nn.Linear(6, 6, bias=False), nn.Linear(6, 5, bias=False))
    compressed = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight[:, 3:] = 0
        compressed[0].weight[:, :3] = 0
    target = Compensation(model, compressed, [torch.randn(2000, 6)], layouts_of(model)).targets({"1.weight": 1})[
        "1.weight"
    ]
    with torch.no_grad():
        assert (target @ compressed[0].weight).norm() < 0.1 * (model[1].weight @ compressed[0].weight).norm()


def test_order_is_of_first_use_and_counts_every_use() -> None:
    model = Sliced().eval()
    found = Compensation(model, copy.deepcopy(model), [torch.randn(4, 8)], layouts_of(model)).order()
    assert list(found.items()) == [("first.weight", 1), ("joint", 2), ("again.weight", 3), ("out.weight", 2)]


def test_slices_and_groups_are_moved_each_by_its_own_inputs() -> None:
    grouped = chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, groups=2))
    compressed = copy.deepcopy(grouped)
    compressed[0].weight.data[:4] += 0.3 * torch.randn(4, 3, 1, 1)  # what only the first group sees
    run = Compensation(grouped, compressed, list(images(64).split(16)), layouts_of(grouped))
    moved = run.targets({"1.weight": 1})["1.weight"] - grouped[1].weight.detach()
    assert float(moved[:3].abs().max()) > 1e-3 and float(moved[3:].abs().max()) < 1e-4
    sliced = Sliced().eval()
    run = Compensation(sliced, perturbed(sliced, "first.weight"), [torch.randn(200, 8)], layouts_of(sliced))
    moved = run.targets({"joint": 2})["joint"] - sliced.joint.detach()
    assert all(float(part.norm()) > 1e-2 for part in moved[:24].split(12))
    assert not moved[24:].any()  # no input ever came there


def test_what_mixes_rows_and_what_is_stacked_stays() -> None:
    for kind in ("experts", "tokens", "images"):
        build, x = BUILDS[kind]
        model = build().eval()
        run = Compensation(model, disturbed(model, 0.1), [x], layouts_of(model))
        targets = run.targets(run.order())
        assert targets and not {"embedding.weight", "experts", "up.weight"} & set(targets)


def test_only_what_is_asked_for_is_run() -> None:
    """The networks stop behind the last weight that is wanted."""
    calls = []
    model = chain(*two_layers(), nn.Linear(10, 7), nn.Linear(7, 3))
    model[4].register_forward_hook(lambda *_: calls.append(1))
    run = Compensation(model, model, [correlated(8, 1)], layouts_of(model), memory=0)
    run.order()
    calls.clear()
    assert run.targets({"0.weight": 1}).keys() == {"0.weight"} and calls == []
    assert run.targets({"4.weight": 1}).keys() == {"4.weight"} and calls == [1, 1]
    assert run.targets({}) == {}


@pytest.mark.parametrize("kind", ["linear", "images", "tokens", "slices"])
def test_inputs_of_the_original_are_kept_where_there_is_memory(kind: str) -> None:
    build, x = BUILDS[kind]
    model = build().eval()
    compressed = disturbed(model, 0.1)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    batches = list(x.split(max(1, len(x) // 2)))
    found = {}
    for memory in (0, 100, 1 << 30):  # none, too little, enough
        run = Compensation(model, compressed, batches, layouts_of(model), memory=memory)
        order = run.order()
        calls.clear()
        found[memory] = [run.targets({name: order[name]}) for name in order]
        if memory > 100:
            assert len(calls) == len(batches)
    for some in (0, 100):
        for ours, others in zip(found[some], found[1 << 30], strict=True):
            assert ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def test_single_rows_and_columns_are_vectors_and_stay() -> None:
    model = chain(nn.Linear(12, 1), nn.ReLU(), nn.Linear(1, 5), nn.Linear(5, 1))
    run = Compensation(model, disturbed(model, 0.2), [correlated(20, 1)], layouts_of(model))
    assert run.targets(run.order()) == {}


def test_modes_gradients_and_weights_stay_as_they_were() -> None:
    model = lively(Normed, images(32)).train()
    compressed = disturbed(model, 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = Compensation(model, compressed, [images(8)], layouts_of(model))
    targets = run.targets(run.order())
    assert model.training and compressed.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(target.requires_grad for target in targets.values())
    assert all(target.dtype == before[name].dtype for name, target in targets.items())


def test_a_forward_of_the_users_own_and_its_gradients() -> None:
    model = two_layers()

    def forward(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.enable_grad():
            return module(batch["x"].requires_grad_())

    batches = [{"x": correlated(40, seed)} for seed in (1, 2)]
    run = Compensation(model, perturbed(model, "0.weight"), batches, layouts_of(model), forward)
    targets = run.targets(run.order())
    assert set(targets) == {"0.weight", "2.weight"} and not targets["2.weight"].requires_grad


def test_inputs_beyond_float32_move_nothing() -> None:
    model = chain(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))
    compressed = copy.deepcopy(model)
    compressed[0].weight.data.mul_(1e30)
    run = Compensation(model, compressed, [1e7 * torch.randn(20, 4)], layouts_of(model))
    assert torch.equal(run.targets({"2.weight": 1})["2.weight"], model[2].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_come_back_in_their_own(dtype) -> None:
    model = two_layers().to(dtype)
    run = Compensation(model, perturbed(model, "0.weight"), [correlated(64, 1).to(dtype)], layouts_of(model))
    target = run.targets({"2.weight": 1})["2.weight"]
    assert target.dtype == dtype and torch.isfinite(target).all()


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(2, 9), st.floats(0, 0.5), st.integers(0, 1000))
def test_few_inputs_do_no_harm(count, width, size, seed) -> None:
    """From a single vector to many, a step never makes things much worse on what it was not fitted to."""
    torch.manual_seed(seed)
    model = chain(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 5))
    compressed = perturbed(model, "0.weight", size)
    run = Compensation(model, compressed, list(correlated(count, seed).split(7)), layouts_of(model))
    targets = run.targets({"2.weight": 1})
    others = correlated(200, seed + 1)
    before = output_error(model, compressed, others)
    assert output_error(model, with_targets(compressed, targets), others) <= 1.5 * before + 0.05


def test_one_input_has_no_other_to_be_held_out() -> None:
    model = two_layers()
    run = Compensation(model, perturbed(model, "0.weight"), [correlated(1, 1)], layouts_of(model))
    assert torch.equal(run.targets({"2.weight": 1})["2.weight"], model[2].weight)


def test_a_wrong_matrix_moves_nothing() -> None:
    weight, own = torch.randn(1, 3, 4), torch.eye(4)[None]
    assert not compensate._solved(weight, -own, own).any()
