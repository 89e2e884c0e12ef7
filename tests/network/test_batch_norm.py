"""Folding batch norm: the same function in the user's own class, and no pair that must not be folded."""

import pytest
import torch
from tests.support.small_networks import Normed, cifar, data_module, images, lively, parameters, resnet20
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput
from waterfill.network.batch_norm import fold_batch_norm


def idle(norm: nn.Module) -> bool:
    """Whether a batch norm does nothing but add its bias."""
    unit = torch.allclose(norm.running_var + norm.eps, torch.ones(()))
    return unit and (norm.weight is None or bool((norm.weight == 1).all()))


def test_every_pair_is_folded_and_the_outputs_stay() -> None:
    model = lively(Normed, images(64, 9))
    before = parameters(model)
    folded = fold_batch_norm(model, images(2))
    fresh = images(16, 3)
    with torch.no_grad():
        assert torch.allclose(folded(fresh), model(fresh), rtol=1e-4, atol=1e-4)
    assert all(idle(getattr(folded, name)) for name in ("bn1", "bn2", "bn3", "bn4"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_users_class_loads_it_and_its_vectors_cost_less() -> None:
    model = lively(Normed, images(64, 9))
    folded = fold_batch_norm(model, images(2))
    Normed().load_state_dict(folded.state_dict(), strict=True)
    plain, small = (waterfill.compress(m, lossless=True) for m in (model, folded))
    norms = [name for name in plain.entries if name.startswith("bn")]
    bytes_of = [sum(len(c.entries[name].blob) for name in norms) for c in (plain, small)]
    assert bytes_of[1] < 0.5 * bytes_of[0]


class Shared(nn.Module):
    """A convolution that feeds a norm and a sum, one whose output is written to before its norm, and one that runs
    twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norm_a, self.norm_b, self.norm_c, self.norm_d = (nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        x = self.norm_a(y) + y
        x = self.norm_b(torch.relu_(self.b(x)))
        x = self.norm_c(self.c(self.c(x)))
        return self.norm_d(self.d(x)).flatten(1)


def test_pairs_that_are_none_stay_as_they_are() -> None:
    model = lively(Shared, images(32))
    folded = fold_batch_norm(model, images(4))
    fresh = images(8, 1)
    with torch.no_grad():
        assert torch.allclose(folded(fresh), model(fresh), rtol=1e-4, atol=1e-4)
    before, after = model.state_dict(), folded.state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"d", "norm_d"}


def test_a_network_without_batch_norm_is_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    folded = fold_batch_norm(model, torch.randn(2, 4))
    assert folded is not model
    assert all(torch.equal(value, folded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot take"):
        fold_batch_norm(Normed(), torch.zeros(2, 4))


def test_resnet20_folds_whole(data_file) -> None:
    model, (x, _) = resnet20(data_file), cifar(data_file, 32)
    folded = fold_batch_norm(model, x[:2])
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 19 and all(map(idle, norms))
    with torch.no_grad():
        gap = float((folded(x) - model(x)).norm() / model(x).norm())
    assert gap < 1e-5


def test_mobilenet_folds_whole(data_file) -> None:
    from safetensors.torch import load_file

    path = data_file("imagenet_mobilenetv1_025.safetensors")
    model = data_module(path.parent, "refmodels").MobileNetV1()
    model.load_state_dict(load_file(path))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    folded = fold_batch_norm(model.eval(), x[:1])
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 27 and all(map(idle, norms))
    with torch.no_grad():
        assert float((folded(x) - model(x)).norm() / model(x).norm()) < 1e-4


class Paths(nn.Module):
    """Large images go without the norm; other norms are always there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.other, self.always, self.exit = nn.Conv2d(24, 32, 1), nn.BatchNorm2d(32), nn.Conv2d(24, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[-1] <= 8:
            y = self.norm(y)
        elif x.shape[-1] > 16:
            return self.exit(torch.relu(y)).mean((2, 3))
        return self.always(self.other(torch.relu(y))).mean((2, 3))


@pytest.mark.parametrize("order", [(8, 12, 20), (20, 12, 8), (12, 8, 20)])
def test_a_norm_is_folded_only_if_it_follows_its_layer_in_every_batch(order) -> None:
    model = lively(Paths, images(32))
    batches = [torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size)) for size in order]
    folded = fold_batch_norm(model, *batches)
    assert idle(folded.always) and not idle(folded.norm)
    assert torch.equal(folded.norm.weight, model.norm.weight)
    with torch.no_grad():
        for batch in batches:
            assert torch.allclose(folded(batch), model(batch), rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="no batches"):
        fold_batch_norm(model)


def test_batches_of_several_sizes_can_be_compressed_with() -> None:
    model = lively(Paths, images(32))
    batches = [torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size)) for size in (12, 8, 20)]
    quick = waterfill.Options(steps=waterfill.Steps(stages=1, repair=False))
    made = waterfill.compress(model, batches, spec="Quantize()", price=1e-8, options=quick).install(Paths()).eval()
    with torch.no_grad():
        assert all(float((made(b) - model(b)).norm() / model(b).norm()) < 0.1 for b in batches)
