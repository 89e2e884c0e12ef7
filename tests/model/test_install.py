"""Weights into modules of other types, devices and ties than the ones they came from: right, or a word."""

import pytest
import torch
from safetensors.torch import save_file
from tests.support.networks import same
from torch import nn

import waterfill
from waterfill.errors import BadInput, Mismatch


class Tied(nn.Module):
    """An embedding that is the head too, a buffer, and one that no state has."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.rand(16))
        self.register_buffer("seen", torch.zeros(3), persistent=False)


def linear() -> nn.Linear:
    return nn.Linear(32, 64)


def made(module: nn.Module) -> waterfill.CompressedModel:
    return waterfill.compress(module, lossless=True)


@pytest.mark.parametrize("left_out", ["embedding.weight", "head.weight"])
def test_a_tied_name_that_the_file_lacks_is_no_mismatch(left_out, tmp_path):
    source = Tied()
    state = {name: value for name, value in source.state_dict().items() if name != left_out}
    save_file(state, tmp_path / "m.safetensors")
    waterfill.compress_file(tmp_path / "m.safetensors", tmp_path / "m.wf", lossless=True)
    module = waterfill.load(tmp_path / "m.wf").install(Tied())
    assert module.head.weight is module.embedding.weight
    assert same(module.head.weight, source.head.weight)
    with pytest.raises(Mismatch, match=f"lacks: {left_out}"):
        waterfill.load(tmp_path / "m.wf").install(Tied(tied=False))


def test_a_module_on_the_meta_device_gets_its_weights():
    source = Tied()
    with torch.device("meta"):
        empty = Tied()
    with pytest.warns(UserWarning, match="seen of the Tied stay on the meta device"):
        module = made(source).install(empty)
    assert module is empty and module.head.weight is module.embedding.weight and module.head.weight.requires_grad
    assert all(same(value, source.state_dict()[name]) for name, value in module.state_dict().items())


def test_what_lies_beside_the_meta_device_stays_where_it_is():
    source, module = nn.Sequential(linear(), linear()), nn.Sequential(linear(), linear().to("meta"))
    held = module[0].weight
    made(source).install(module)
    assert module[0].weight is held
    assert all(same(value, source.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "value", "told"),
    [
        (torch.float16, 1e6, r"'weight' holds 1 values, such as 1e\+06, that float16 cannot hold; use float32"),
        (torch.float8_e4m3fn, 500.0, "such as 500, that float8_e4m3fn"),
        (torch.int32, 0.5, "such as 0.5, that int32"),
        (torch.uint8, -3.0, "such as -3, that uint8"),
    ],
)
def test_values_that_a_module_cannot_hold_are_refused(dtype, value, told):
    source, module = linear(), linear()
    nn.init.constant_(source.weight, 2.0)
    source.weight.data[3, 4] = value
    module.weight = nn.Parameter(torch.zeros(64, 32, dtype=dtype), requires_grad=False)
    before = module.weight.clone()
    with pytest.raises(Mismatch, match=told):
        made(source).install(module)
    assert same(module.weight, before)


def test_whole_numbers_fit_integers_and_imaginary_parts_do_not_vanish():
    source, module = linear(), linear()
    nn.init.constant_(source.weight, 7.0)
    module.weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.int32), requires_grad=False)
    assert set(made(source).install(module).weight.flatten().tolist()) == {7}
    source.weight = nn.Parameter(torch.complex(torch.ones(64, 32), torch.ones(64, 32)))
    with pytest.raises(Mismatch, match="float32 cannot hold"):
        made(source).install(linear())


def test_a_narrower_type_is_told_and_a_wider_one_is_not():
    file = made(linear())
    with pytest.warns(UserWarning, match="holds bfloat16 where there is float32, in weight, bias"):
        file.install(linear().bfloat16())
    file.install(linear().double())
    infinite = linear()
    infinite.weight.data[0, 0] = -float("inf")
    with pytest.warns(UserWarning, match="float16"):  # an infinity fits where a large number does not
        assert made(infinite).install(linear().half()).weight[0, 0] == -float("inf")


class Versioned(nn.Linear):
    """A layer with a state of its own kind."""

    version = 1

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.version = state["version"]


def test_an_extra_state_that_is_no_tensor_is_left_out_and_stays(tmp_path):
    source, module = nn.Sequential(Versioned(64, 64)), nn.Sequential(Versioned(64, 64))
    file = waterfill.compress(source, bits=8)
    assert list(file.entries) == ["0.weight", "0.bias"]
    assert "not in the file" in file.warnings["0._extra_state"]
    file.save(tmp_path / "m.wf")
    module[0].version = 3
    assert waterfill.load(tmp_path / "m.wf").install(module)[0].version == 3
    assert same(module[0].weight, file.state_dict()["0.weight"])


def test_lazy_modules():
    with pytest.raises(BadInput, match="'weight' has no shape yet: its module is lazy; run one batch through"):
        waterfill.compress(nn.LazyLinear(8), bits=8)
    source = linear()
    module = made(source).install(nn.LazyLinear(64))
    assert same(module.weight, source.weight)
    x = torch.randn(2, 32)
    assert torch.equal(module(x), source(x))


def test_a_network_with_folded_norms_comes_back_in_evaluation_mode() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))

    torch.manual_seed(0)
    model, x = network(), torch.randn(32, 3, 8, 8)
    model(x)
    made = waterfill.compress(model.eval(), [x], bits=8)
    back = made.install(network())
    assert not back.training and not back[1].training
    with torch.no_grad():
        assert float((back(x) - model(x)).norm()) < 0.05 * float(model(x).norm())
