"""Batches and models as users really have them: each works, or is refused with what, where and what to do."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import waterfill
from waterfill import calibrate
from waterfill.compression.options import Steps
from waterfill.errors import BadInput, BudgetError

X = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
BATCHES = list(X.split(8))
QUICK = Steps(stages=1)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))


def broken() -> nn.Module:
    model = net()
    with torch.no_grad():
        model[0].weight[1, 2] = torch.nan
    return model


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return net()


class Raises(nn.Module):
    """A forward with a bug of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(16, 8), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class Logarithm(nn.Module):
    """Activations that are NaN, which the outputs hide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(self.second((self.first(x) - 100).log()))


@pytest.mark.parametrize(
    ("model", "batches", "words"),
    [
        (net(), 5, "int"),
        (net(), lambda: BATCHES, "function"),
        (net().state_dict(), BATCHES, "OrderedDict.*torch.nn.Module"),
        (net(), [b.numpy() for b in BATCHES], "ndarray.*a batch is a tensor"),
        (net(), [(b, torch.zeros(8)) for b in BATCHES], "take labels away"),
        (net(), [b.double() for b in BATCHES], r"convert .*batch.to\(torch.float32\)"),
        (net().bfloat16(), BATCHES, r"batch.to\(torch.bfloat16\)"),
        (net(), [*BATCHES, X[:0]], r"batch 4 .*holds no inputs, but \[0, 16\]"),
        (Logarithm(), BATCHES, "batch 0 .*inputs at 'second.weight'"),
        (broken(), BATCHES, "'0.weight' holds 1 values that are NaN"),
        (Raises(KeyError("gone")), BATCHES, "KeyError 'gone'"),
        (Raises(AssertionError()), BATCHES, "AssertionError"),
    ],
)
def test_what_cannot_work_is_refused(model, batches, words) -> None:
    for attempt in (calibrate, lambda *given: waterfill.compress(*given, bits=4)):
        with pytest.raises(BadInput, match=words):
            attempt(model, batches)


def test_a_model_made_in_inference_mode_can_be_copied_and_not_differentiated() -> None:
    with pytest.raises(BadInput, match="inference_mode"):
        calibrate(made_in_inference_mode(), BATCHES)
    made = waterfill.compress(
        made_in_inference_mode(), BATCHES, spec="Quantize()", price=1e-6, options=waterfill.Options(steps=QUICK)
    )
    assert made.warnings == {} and made.bits > 1


def test_a_loss_that_fails_a_cache_that_is_a_file_and_logits_that_are_none(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        calibrate(net(), BATCHES, cache=tmp_path / "file")
    with pytest.raises(BadInput, match="importance= failed.*ZeroDivisionError"):
        calibrate(net(), BATCHES, importance=lambda outputs, batch: outputs.sum() / (1 // 0))
    with pytest.raises(BadInput, match="single number"):
        calibrate(net(), BATCHES, importance="fisher", forward=lambda model, batch: model(batch).sum())
    for bits, words in (("3", "a str"), (float("nan"), "positive")):
        with pytest.raises(BudgetError, match=words):
            waterfill.compress(net(), BATCHES, bits=bits)
    with pytest.raises(BudgetError, match="no weights"):
        waterfill.compress(nn.ReLU(), bits=3)


class Returns(nn.Module):
    """A small network whose answer comes wrapped."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x, self.net(x))


@dataclass
class Output:
    """What a model may return."""

    loss: Tensor | None
    answer: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: (y, x),
        lambda x, y: [y],
        lambda x, y: {"inputs": x, "logits": y},
        lambda x, y: Output(None, y),
        lambda x, y: {"outer": {"inner": y}},
        lambda x, y: ((y,), x),
        lambda x, y: (y.argmax(-1), y),
        lambda x, y: {"mask": y > 0, "answer": y},
    ],
)
def test_the_outputs_are_found_in_what_a_model_returns(wrap) -> None:
    found, plain = calibrate(Returns(wrap), BATCHES), calibrate(net(), BATCHES)
    assert torch.equal(found["net.0.weight"].rows, plain["0.weight"].rows)


@pytest.mark.parametrize(
    ("model", "batches", "budget"),
    [
        (net(), [X[:1]], {"bits": 6}),
        (net(), [X[0]], {"bits": 6}),  # one input without a dimension of samples
        (net(), [X[:1].repeat(8, 1)] * 2, {"bits": 6}),
        (net(), [b * (torch.arange(16) > 9) for b in BATCHES], {"bits": 6}),
        (net(), [b * 0 for b in BATCHES], {"bits": 6}),
        (net().train(), BATCHES, {"price": 1e-5}),
        (net().double(), [b.double() for b in BATCHES], {"price": 1e-5}),
        (net().bfloat16(), [b.bfloat16() for b in BATCHES], {"price": 1e-5}),
        (net().half(), [b.half() for b in BATCHES], {"price": 1e-5}),
        (net().requires_grad_(False), BATCHES, {"price": 1e-5}),
    ],
)
def test_what_is_unusual_works(model, batches, budget) -> None:
    training = model.training
    made = waterfill.compress(model, batches, spec="Quantize()", **budget, options=waterfill.Options(steps=QUICK))
    assert made.bits <= budget.get("bits", 12) and model.training == training
    after = made.install(net().to(model[0].weight.dtype)).eval()
    with torch.no_grad():
        wanted, found = (m(batches[0]).float() for m in (model.eval(), after))
    assert float((found - wanted).norm() / wanted.norm()) < 0.3


def test_inputs_that_the_model_writes_into_stay_as_they_were() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.mul_(2))

    batches = [b.clone() for b in BATCHES]
    waterfill.compress(Writes(), batches, spec="Quantize()", price=1e-4, options=waterfill.Options(steps=QUICK))
    assert all(torch.equal(a, b) for a, b in zip(batches, BATCHES, strict=True))
    with torch.inference_mode():
        made = [b.clone() for b in BATCHES]
    assert torch.equal(calibrate(net(), made)["0.weight"].rows, calibrate(net(), BATCHES)["0.weight"].rows)


def test_a_network_of_buffers_alone_is_compressed() -> None:
    class Buffers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.randn(16, 24, generator=torch.Generator().manual_seed(3)))
            self.register_buffer("shift", torch.zeros(24))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.matrix + self.shift

    made = waterfill.compress(Buffers(), BATCHES, spec="Quantize()", price=1e-5, options=waterfill.Options(steps=QUICK))
    assert made.notes["unreached"] == [] and made.entries["matrix"].error < 0.2


@pytest.mark.parametrize("count", [1, 4])
def test_few_samples_do_no_harm(count) -> None:
    """Half of the rows are silent for one sample; other samples hear them."""
    model = net().eval()
    with torch.no_grad():
        wanted = model(X)
        errors = []
        for made in (
            waterfill.compress(model, [X[:count]], spec="Quantize()", bits=8, options=waterfill.Options(steps=QUICK)),
            waterfill.compress(model, spec="Quantize()", bits=8),
        ):
            errors.append(float((made.install(net().eval())(X) - wanted).norm() / wanted.norm()))
    assert errors[0] < 1.5 * errors[1]
