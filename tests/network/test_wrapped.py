"""Networks that `torch.compile` or a parallel module holds: names are those of the network's own class."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import waterfill
from waterfill import Budget
from waterfill.cli.network import with_weights
from waterfill.learn import LC, Distillation, FrozenCodes, Schedule, StraightThrough, Training, distill, run


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)
    return nn.Sequential(*layers).eval()


def inputs() -> list[Tensor]:
    return [torch.randn(16, 32, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def compiled(model: nn.Module) -> nn.Module:
    wrapped = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    compiled,
    nn.DataParallel,
    lambda model: compiled(nn.DataParallel(model)),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_files_of_wrapped_networks_are_those_of_the_network(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for batches in (None, inputs()):
        plain, wrapped = (waterfill.compress(model, batches, ratio=6) for model in (net(), wrap(net())))
        assert wrapped.manifest == plain.manifest
        assert [entry.blob for entry in wrapped.entries.values()] == [entry.blob for entry in plain.entries.values()]
    assert list(waterfill.calibrate(wrap(net()), inputs())) == list(waterfill.calibrate(net(), inputs()))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_files_go_into_wrapped_networks(wrap: Callable[[nn.Module], nn.Module]) -> None:
    made, x = waterfill.compress(net(), spec="Quantize()", ratio=6), inputs()[0]
    expected = made.install(net())(x)
    wrapped = wrap(net())
    assert made.install(wrapped) is wrapped
    assert torch.equal(wrapped(x), expected)
    torch.testing.assert_close(waterfill.pack(made, wrap(net()))(x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_checkpoint_of_the_network_goes_into_a_wrapped_one(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    save_file(net().state_dict(), tmp_path / "net.safetensors")
    wrapped = wrap(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)))
    assert with_weights(wrapped, str(tmp_path / "net.safetensors")) is wrapped
    assert torch.equal(wrapped(inputs()[0]), net()(inputs()[0]))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_files_with_prefixed_names_go_into_what_has_the_prefix(wrap: Callable[[nn.Module], nn.Module]) -> None:
    made, x = waterfill.compress(wrap(net()).state_dict(), bits=6), inputs()[0]
    plain = net()
    plain.load_state_dict({".".join(name.split(".")[-2:]): value for name, value in made.state_dict().items()})
    expected = plain(x)
    assert torch.equal(made.install(wrap(net()))(x), expected)
    torch.testing.assert_close(waterfill.pack(made, wrap(net()))(x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_layers_of_wrapped_networks_are_compared(wrap: Callable[[nn.Module], nn.Module]) -> None:
    made = waterfill.compress(net(), bits=4)
    plain, wrapped = (
        waterfill.evaluate(made.install(wrapped(net())), inputs(), reference=wrapped(net()), layers=True).layers
        for wrapped in (nn.Module.eval, wrap)
    )
    assert wrapped == plain and len(plain) == 2


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_networks_learn(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(net())
    lc = LC(model, "Codebook(levels=2)", schedule=Schedule(mu=1.0))
    lc.c_step()
    names = list(net().state_dict())
    assert list(lc.result().state_dict()) == names
    made = waterfill.compress(model, spec="Quantize()", ratio=6)
    for learner in (StraightThrough(model, made), FrozenCodes(model, made)):
        assert list(learner.result().state_dict()) == names
    learned = run(model, inputs(), budget=Budget(ratio=6), training=Training(epochs=1))
    assert list(learned.state_dict()) == names
    distill(wrap(net()), wrap(net()), inputs(), how=Distillation(epochs=1, features={"0": "0"}))
