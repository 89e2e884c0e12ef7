"""Evaluation: known answers, whatever the batches, and clear refusals."""

import json
import math

import numpy as np
import pytest
import torch
from tests.support.small_networks import Normed, Tokens, cifar, disturbed, images, lively, parameters, resnet20
from torch import nn

import waterfill
from waterfill import evaluate
from waterfill.errors import BadInput


class Table(nn.Module):
    """The inputs are the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_uniform_logits_have_the_entropy_of_the_alphabet() -> None:
    found = evaluate(Table(), [(torch.zeros(5, 16), torch.arange(5))], data_bytes=10)
    assert found.nats == pytest.approx(math.log(16))
    assert found.perplexity == pytest.approx(16)
    assert found.bits_per_token == pytest.approx(4)
    assert found.bits_per_byte == pytest.approx(5 * 4 / 10)
    assert (found.rows, found.batches) == (5, 1)


def test_accuracy_counts_the_best_and_the_best_five() -> None:
    logits = torch.arange(12.0).repeat(4, 1)
    found = evaluate(Table(), [(logits, torch.tensor([11, 7, 6, -100]))])
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.top5 == pytest.approx(2 / 3)


def test_five_of_few_classes_say_nothing() -> None:
    assert evaluate(Table(), [(torch.eye(9), torch.arange(9))]).top5 is None


def test_divergence_agreement_and_error_are_those_of_the_definition() -> None:
    random = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 6, 4, 7, generator=random)

    class Constant(nn.Module):
        def __init__(self, value: torch.Tensor) -> None:
            super().__init__()
            self.value = value

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.value[rows]

    found = evaluate(Constant(a), torch.arange(6).split(4), reference=Constant(b))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (b.double().numpy(), a.double().numpy()))
    assert found.divergence == pytest.approx((p * np.log(p / q)).sum(-1).mean())
    assert found.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert found.output_error == pytest.approx(float((a - b).norm() / b.norm()))
    assert found.rows == 24 and found.accuracy is None


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_size_of_batches_makes_no_difference(size: int) -> None:
    model, x, y = lively(Normed, images(32)), images(8, 1), torch.arange(8)
    noisy = disturbed(model, 0.1)
    whole = evaluate(noisy, [(x, y)], reference=model, layers=True)
    parts = evaluate(noisy, list(zip(x.split(size), y.split(size), strict=True)), reference=model, layers=True)
    for name in ("accuracy", "perplexity", "divergence", "agreement", "output_error"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-4)
    assert parts.layers == pytest.approx(whole.layers, rel=1e-4)


def test_layers_come_in_order_with_the_error_that_reaches_them() -> None:
    model = lively(Normed, images(32))
    changed = disturbed(model, 0.0)
    with torch.no_grad():
        changed.conv2.weight *= 1.5  # in the middle: nothing before it may differ
    found = evaluate(changed, [images(4)], reference=model, layers=True).layers
    names = list(found)
    assert names[:4] == ["conv1", "bn1", "conv2", "bn2"] and names[-1] == "head"
    assert found["conv1"] == found["bn1"] == 0 < found["conv2"]
    assert all(found[name] > 0 for name in names[2:])


def test_tokens_have_a_row_each_and_the_first_tensor_is_the_output() -> None:
    torch.manual_seed(0)
    model, tokens = Tokens(), torch.randint(20, (3, 11))
    found = evaluate(model, [{"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}], reference=model, layers=True)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
    assert found.nats == pytest.approx(float(wanted), rel=1e-5)
    assert found.rows == 30 and found.divergence == 0 and found.agreement == 1
    assert set(found.layers.values()) == {0.0} and "lstm" in found.layers


def test_how_a_batch_is_read_is_up_to_the_caller() -> None:
    x, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
    batch = {"pixels": x, "class": y}
    found = evaluate(
        Table(),
        [batch, batch],
        forward=lambda model, b: model(b["pixels"]),
        targets=lambda b: b["class"],
        metrics={"largest": lambda outputs, targets: outputs.amax(1)},
        data_bytes=lambda b: 5,
    )
    assert found.accuracy == pytest.approx(0.75) and found.metrics == {"largest": 1.0}
    assert found.bits_per_byte == pytest.approx(found.bits_per_token * 8 / 10)
    alone = evaluate(nn.Bilinear(4, 4, 3), [(x, x)], targets=None)
    assert alone.rows == 4 and alone.accuracy is None


def test_the_models_are_left_as_they_were() -> None:
    model = lively(Normed, images(16)).train()
    model.bn1.eval()
    before = parameters(model)
    evaluate(model, [images(4)], reference=model, layers=True)
    assert model.training and model.conv1.training and not model.bn1.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_json_and_text_hold_what_was_measured() -> None:
    model = lively(Normed, images(16))
    found = evaluate(disturbed(model, 0.2), [(images(4), torch.arange(4))], reference=model, layers=True)
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["divergence"] == found.divergence and told["layers"]["head"] == found.layers["head"]
    assert "bits_per_byte" not in told
    assert all(word in found.text() for word in ("correct", "divergence", "bn2", f"{100 * found.accuracy:.2f} %"))


def test_a_perplexity_beyond_all_numbers_is_null_in_json() -> None:
    found = evaluate(Table(), [(torch.tensor([[1e4, 0.0]]), torch.tensor([1]))])
    assert math.isinf(found.perplexity) and found.as_json()["perplexity"] is None


def nan_at(index: int) -> list[torch.Tensor]:
    batches = [torch.zeros(2, 3) for _ in range(3)]
    batches[index][0, 0] = float("nan")
    return batches


@pytest.mark.parametrize(
    ("batches", "options", "said"),
    [
        ([], {}, "no batches"),
        (nan_at(1), {}, "batch 1 .*model.* 1 of 6 outputs .* NaN"),
        ([(torch.zeros(2, 3), torch.zeros(2))], {}, "class numbers"),
        ([(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))], {}, "last dimension"),
        ([(torch.zeros(2, 3), torch.tensor([0, 3]))], {}, "0 to 3.*3 classes"),
        ([torch.zeros(2, 3, dtype=torch.long)], {}, "int64"),
        ([torch.zeros(2, 3)], {"layers": True}, "reference"),
        ([torch.zeros(2, 3)], {"targets": "first"}, "first"),
        ([torch.zeros(2, 3)], {"forward": lambda model, x: "text"}, "without a tensor"),
    ],
)
def test_what_cannot_be_measured_is_refused(batches, options, said) -> None:
    with pytest.raises(BadInput, match=said):
        evaluate(Table(), batches, **options)


def test_the_network_that_fails_is_named() -> None:
    broken = nn.Linear(3, 2)
    nn.init.constant_(broken.weight, float("inf"))
    with pytest.raises(BadInput, match="reference"):
        evaluate(nn.Linear(3, 2), [torch.ones(2, 3)], reference=broken)
    with pytest.raises(BadInput, match=r"\[2, 4\] float32") as caught:
        evaluate(nn.Linear(3, 2), [torch.ones(2, 4)])
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)
    with pytest.raises(BadInput, match="same network"):
        evaluate(nn.Linear(3, 2), [torch.ones(2, 3)], reference=nn.Linear(3, 4))


@pytest.mark.slow
def test_resnet20_on_real_images(data_file) -> None:
    model, (x, y) = resnet20(data_file), cifar(data_file, 500)
    noisy = waterfill.compress(model, bits=3).install(type(model)(20))
    found = evaluate(noisy, list(zip(x.split(100), y.split(100), strict=True)), reference=model, layers=True)
    assert found.accuracy > 0.88 and found.agreement > 0.93 and 0 < found.divergence < 0.1
    assert len(found.layers) == 39
