"""A run leaves nothing behind: not in the network, not in anybody's generators; and every run starts alike."""

import copy
import random
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import waterfill
from waterfill import WaterfillError
from waterfill.network.running.forward import as_deployed, call, copy_of
from waterfill.network.running.state import same_draws, unchanged

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Remembers(nn.Module):
    """Writes to buffers, a list, a dict, a number, a tensor beside the buffers and a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("sum", torch.zeros(6))
        self.register_buffer("last", torch.zeros(6))
        self.seen: list[Tensor] = []
        self.named = {"calls": 0}
        self.beside = torch.zeros(3)
        self.own = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) + self.sum + torch.randn(6, generator=self.own)
        self.sum += y.sum(0)
        self.last = y[0].detach()
        self.seen.append(y)
        self.named["calls"] += 1
        self.beside[0] += 1
        self.new = y
        return y


def state_of(model: Remembers) -> tuple[object, ...]:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    kept = (list(model.seen), dict(model.named), model.beside.tolist(), model.own.get_state().tolist())
    return {name: value.tolist() for name, value in tensors.items()}, *kept, hasattr(model, "new")


def test_nothing_that_a_run_writes_stays() -> None:
    with torch.random.fork_rng():
        model = Remembers().eval()
    before, buffer = state_of(model), model.sum
    with as_deployed(model):
        outputs = [call(model, X) for _ in range(2)]
    assert state_of(model) == before and model.sum is buffer
    assert torch.equal(*outputs)
    waterfill.calibrate(model, X.split(4))
    waterfill.evaluate(model, X.split(4), reference=model, layers=True)
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="stop"), unchanged(model):
        model.sum += 1
        raise RuntimeError("stop")
    assert state_of(model) == before


def test_outputs_that_are_a_state_are_kept() -> None:
    class Total(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            self.total += x.sum(0)
            return self.total

    model = Total()
    with as_deployed(model):
        assert torch.allclose(call(model, X), X.sum(0))
    assert not model.total.any()


def test_draws_depend_on_the_batch_and_nobodys_generator_moves() -> None:
    def drawn(batch: Tensor, seed: int = 0) -> tuple[float, ...]:
        with same_draws(batch, seed):
            return float(torch.rand(())), float(np.random.rand()), random.random()

    def states() -> list[object]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]

    before = states()
    assert drawn(X) == drawn(X.clone()) and states() == before
    for other in (drawn(X + 1), drawn(X, 1)):
        assert all(a != b for a, b in zip(drawn(X), other, strict=True))


@dataclass
class Held:
    """What a network may keep, with a lock that no copy can have."""

    values: list[Tensor] = field(default_factory=list)
    lock: object = field(default_factory=threading.Lock)


class Keeps(nn.Module):
    def __init__(self, held: object) -> None:
        super().__init__()
        self.first, self.second, self.held = nn.Linear(6, 96), nn.Linear(96, 9), held

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if isinstance(self.held, list):
            self.held.append({"hidden": hidden})
        return self.second(torch.relu(hidden))


@pytest.mark.parametrize("held", [[], threading.Lock(), (threading.Lock(), 3)], ids=["list", "lock", "tuple"])
def test_a_network_that_keeps_activations_or_a_lock_is_compressed(held) -> None:
    model = Keeps(held).eval()
    model(X)  # leaves a part of its graph behind
    made = waterfill.compress(model, list(X.split(4)), spec="Quantize()", price=1e-6)
    plain = Keeps(None).eval()
    with torch.no_grad():
        wanted = model(X)
        assert float((made.install(plain)(X) - wanted).norm() / wanted.norm()) < 0.05
    assert copy_of(model).held is held or isinstance(held, list)


def test_what_cannot_be_copied_and_holds_weights_is_named_before_anything_is_run() -> None:
    model, ran = Keeps(Held([torch.ones(3)])), []
    with pytest.raises(WaterfillError, match="'held' holds tensors and cannot be copied"):
        waterfill.compress(model, list(X.split(4)), bits=8, forward=lambda m, b: ran.append(1) or m(b))
    assert not ran
    assert copy_of(Keeps(Held())).held is not None


def test_a_copy_owes_nothing_to_the_original() -> None:
    model = Keeps([])
    model(X)
    copied = copy_of(model)
    with torch.no_grad():
        copied.first.weight.zero_()
        copied.held[0]["hidden"].zero_()
    assert model.first.weight.any() and model.held[0]["hidden"].any()
    assert copy.deepcopy(copied.held[0]["hidden"]) is not None
