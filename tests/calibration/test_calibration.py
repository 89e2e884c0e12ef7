"""What else `calibrate` promises: a model left alone, caches that are gone on from, and clear refusals."""

import copy

import pytest
import torch
from tests.support.calibrated import images, net
from torch import nn

import waterfill
from waterfill.errors import BadInput, PlanMismatch
from waterfill.importance import UNTESTED, Importance


def test_the_model_is_left_as_it_was(tmp_path):
    model = net().train()
    model[8].weight.requires_grad_(False)
    model[3].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]

    def check():
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == asked
        assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and model[5].weight.grad is None
        assert not any(m._forward_hooks for m in model.modules())

    waterfill.calibrate(model, [images()])
    check()
    for broken in ([images(), torch.zeros(2, 4, 9, 9)], [images() * float("nan")]):
        with pytest.raises(BadInput):
            waterfill.calibrate(model, broken)
        check()


def test_the_same_seed_gives_the_same_and_batches_may_be_used_once():
    model, x = net(), images()
    a, b = (waterfill.calibrate(model, iter(x.split(8)), seed=6) for _ in range(2))
    other = waterfill.calibrate(model, x.split(8), seed=7)
    assert all(torch.equal(a[name].rows, b[name].rows) for name in a)
    assert torch.equal(a["5.weight"].gram, b["5.weight"].gram)
    assert not torch.equal(a["0.weight"].rows, other["0.weight"].rows)


@pytest.mark.parametrize("count", [1, 2])
def test_few_samples_dead_columns_and_singular_matrices_still_give_factors(count):
    model, x = net(), images(count)
    x[:, 1] = 0
    found = waterfill.calibrate(model, [x])
    for value in found.values():
        assert isinstance(value, Importance)
        assert (value.rows > 0).all() and (value.root is None or bool(torch.isfinite(value.root).all()))
    vector = waterfill.calibrate(nn.Linear(6, 4), [torch.randn(6)])["weight"]
    assert vector.damping == UNTESTED and vector.halves is None and torch.isfinite(vector.root).all()


def test_half_precision_is_added_up_in_single():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)), 30 * torch.randn(64, 12)
    wide = waterfill.calibrate(model, [x])
    narrow = waterfill.calibrate(model.bfloat16(), [x.bfloat16()])
    for name in ("0.weight", "2.weight"):
        assert torch.allclose(narrow[name].gram, wide[name].gram, rtol=0.1, atol=float(0.05 * wide[name].gram.max()))


def test_a_dict_is_keywords_and_a_tuple_is_arguments():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

        def forward(self, left, right):
            return {"hidden": left, "logits": self.a(left) + self.b(right)}

    model, left, right = Two(), torch.randn(9, 6), torch.randn(9, 3)
    keyed, listed = (waterfill.calibrate(model, [b]) for b in ({"right": right, "left": left}, (left, right)))
    assert torch.equal(keyed["a.weight"].gram, listed["a.weight"].gram)
    assert torch.allclose(keyed["b.weight"].gram, right.T @ right / 9, rtol=1e-4, atol=1e-4)


def test_a_cache_holds_the_same_and_is_gone_on_from(tmp_path):
    model, batches = net(), list(images().split(8))
    ran = []

    def forward(m, batch):
        ran.append(1)
        return m(batch)

    plain = waterfill.calibrate(model, batches)
    kept = waterfill.calibrate(model, batches, cache=tmp_path, forward=forward, memory=30000)
    assert len(ran) > len(batches)  # several passes
    assert list(kept) == list(plain) and kept.samples == plain.samples
    for name in plain:
        assert torch.allclose(kept[name].diagonal, plain[name].diagonal, rtol=1e-5)
        assert (
            (kept[name].gram is None) == (plain[name].gram is None) == (not name.endswith("weight") or name[0] == "3")
        )
        assert kept[name].gram is None or torch.allclose(kept[name].gram, plain[name].gram, rtol=1e-5)
        assert torch.allclose(kept[name].rows, plain[name].rows, rtol=1e-5)
        assert kept[name].damping == plain[name].damping and kept[name].kernel == plain[name].kernel
    ran.clear()
    again = waterfill.calibrate(model, batches, cache=tmp_path, forward=forward)
    assert not ran and torch.equal(again["5.weight"].gram, kept["5.weight"].gram)
    cut = tmp_path / "2.safetensors"
    cut.write_bytes(cut.read_bytes()[:40])
    repaired = waterfill.calibrate(model, batches, cache=tmp_path, forward=forward)
    assert len(ran) == len(batches) and torch.allclose(repaired["2.weight"].gram, plain["2.weight"].gram, rtol=1e-5)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    with pytest.raises(PlanMismatch, match="weights"):
        waterfill.calibrate(model, batches, cache=tmp_path)
    with pytest.raises(BadInput, match="passes"):
        waterfill.calibrate(model, iter(batches), cache=tmp_path / "new", memory=30000)


def test_a_compiled_model_is_seen_as_it_was_written():
    calls = []

    def counted(graph, _):
        calls.append(graph)
        return graph.forward

    model, batches = net(), images(48).split(24)
    compiled = torch.compile(model, backend=counted)
    found, wanted = waterfill.calibrate(compiled, batches), waterfill.calibrate(model, batches)
    assert not calls and not found.notes
    for name in wanted:
        assert torch.equal(found[name].rows, wanted[name].rows)
    with torch.no_grad():
        compiled(batches[0])
    assert calls  # it compiles again after


def test_a_matrix_larger_than_the_memory_is_gathered_as_its_diagonal(tmp_path):
    x = torch.randn(30, 100)
    found = waterfill.calibrate(nn.Linear(100, 4), [x], memory=1000)
    assert found["weight"].gram is None and "memory" in found.notes["weight"]
    assert torch.allclose(found["weight"].diagonal, x.square().mean(0), rtol=1e-4)


def test_progress_counts_batches():
    seen = []
    waterfill.calibrate(net(), images().split(8), progress=seen.append)
    assert [(p.stage, p.done, p.total) for p in seen] == [("calibrating", k, 3) for k in (1, 2, 3)]


class Stuck(nn.Module):
    """Outputs without a gradient, or with one that is infinite."""

    def __init__(self, what) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(6, 4), what

    def forward(self, x):
        with torch.set_grad_enabled(self.what != "no_grad"):
            y = self.layer(x)
        if self.what == "root":
            return (y * 0).sqrt()
        return y.argmax(-1) if self.what == "argmax" else y


@pytest.mark.parametrize(
    ("model", "batches", "options", "words"),
    [
        (net(), [], {}, "no batches"),
        (net(), [torch.zeros(2, 4, 9, 9)], {}, r"batch 0 .*\[2, 4, 9, 9\]"),
        (net(), [images(), images() * float("inf")], {}, r"batch 1 .*inputs at '0.weight'"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), [torch.full((4, 3), 1e30)], {}, "inputs at '0.weight'"),
        (net(), images(), {}, "split"),
        (net(), [images()], {"importance": "magic"}, "magic"),
        (net(), [images()], {"probes": 0}, "probes"),
        (net(), [images()], {"importance": lambda o, b: o.sum() * float("nan")}, "loss"),
        (Stuck("argmax"), [torch.zeros(3, 6)], {}, "not real"),
        (Stuck("root"), [torch.zeros(3, 6)], {}, "gradients at 'layer.weight'"),
        (Stuck("no_grad"), [torch.zeros(3, 6)], {}, "no gradient"),
    ],
)
def test_refusals(model, batches, options, words):
    with pytest.raises(BadInput, match=words):
        waterfill.calibrate(model, batches, **options)


def test_the_models_own_error_is_chained():
    with pytest.raises(BadInput) as caught:
        waterfill.calibrate(net(), [torch.zeros(2, 4, 9, 9)])
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)
