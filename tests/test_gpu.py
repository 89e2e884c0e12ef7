"""Networks on a GPU: compressed, learned, evaluated and packed where they are, with what a processor gives."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.support.packable import Net as Packable
from tests.support.toy_learning import X, Y, accuracy, net, trained
from torch import Tensor, nn

import waterfill
from waterfill import Budget, Options
from waterfill.learn import Distillation, Training, distill, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch knows as cuda")
GPU = "cuda"


class Text(nn.Module):
    """An embedding, a recurrent layer, attention and logits of every place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.recurrent = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 30)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.attention(self.recurrent(self.embedding(tokens))[0]))


class Images(nn.Module):
    """Convolutions, plain and depthwise, with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x)
        return made


CASES = {
    "text": (Text, lambda: torch.randint(0, 30, (24, 12))),
    "images": (Images, lambda: torch.randn(24, 3, 12, 12)),
    "layers": (net, lambda: X[:64]),
}


def on_gpu(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(GPU).eval()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spec", [None, "Quantize() + LowRank()", "Prune(pattern='columns', values=Quantize())"])
def test_compressed_on_the_gpu_as_on_the_processor(case: str, spec: str | None) -> None:
    build, draw = CASES[case]
    model, x = build().eval(), draw()
    here = waterfill.compress(model, x.split(8), spec=spec, bits=3)
    there = waterfill.compress(on_gpu(model), x.to(GPU).split(8), spec=spec, bits=3)
    wanted = model(x).detach()
    errors = [
        float((made.install(copy.deepcopy(model))(x).detach() - wanted).square().mean()) for made in (here, there)
    ]
    assert there.bits <= 3
    assert errors[1] < 1.5 * errors[0] + 1e-9


def test_what_is_installed_into_a_network_on_the_gpu_is_there(tmp_path: Path) -> None:
    model = Images().eval()
    waterfill.compress(model, bits=4).save(tmp_path / "net.wf")
    there = waterfill.load(tmp_path / "net.wf").install(Images().to(GPU))
    here = waterfill.load(tmp_path / "net.wf").install(Images())
    for name, value in there.state_dict().items():
        assert value.device.type == GPU
        assert torch.equal(value.cpu(), here.state_dict()[name])


def test_batches_may_stay_where_they_are_if_the_forward_pass_moves_them() -> None:
    model = on_gpu(Images())
    made = waterfill.compress(model, torch.randn(16, 3, 8, 8).split(8), bits=3, forward=lambda m, x: m(x.to(GPU)))
    assert made.bits <= 3 and all(v.device.type == "cpu" for v in made.state_dict().values())


@pytest.mark.parametrize("method", ["straight-through", "lc"])
@pytest.mark.parametrize("labels", [False, True])
def test_learning_on_the_gpu(method: str, labels: bool) -> None:
    original = trained()
    x, y = X.to(GPU), Y.to(GPU)
    batches = list(zip(x.split(16), y.split(16), strict=True))
    made = run(
        original.to(GPU),
        batches,
        budget=Budget(bits=1.9),
        forward=lambda model, batch: model(batch[0]),
        loss=(lambda outputs, batch: F.cross_entropy(outputs, batch[1])) if labels else None,
        training=Training(epochs=6, rate=4e-2, c_steps=4, method=method),
    )
    assert made.bits <= 1.9
    assert accuracy(made.install(net())) > {"straight-through": 0.8, "lc": 0.5}[method]


def test_learning_goes_on_from_snapshots_on_the_gpu(tmp_path: Path) -> None:
    original = trained().to(GPU)
    training, batches = Training(epochs=2, rate=3e-2, c_steps=2), X.to(GPU).split(64)
    whole = run(original, batches, budget=Budget(bits=1.9), training=training)
    seen = 0

    def stop(progress: object) -> None:
        nonlocal seen
        seen += getattr(progress, "stage", "") == "learning"
        if seen == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            original, batches, budget=Budget(bits=1.9), training=training, options=Options(work=tmp_path, progress=stop)
        )
    again = run(original, batches, budget=Budget(bits=1.9), training=training, options=Options(work=tmp_path))
    assert again.size <= whole.size * 1.02
    assert abs(accuracy(again.install(net())) - accuracy(whole.install(net()))) < 0.1


def test_a_student_learns_on_the_gpu() -> None:
    teacher = trained().to(GPU)
    student = nn.Sequential(nn.Linear(X.shape[1], 24), nn.ReLU(), nn.Linear(24, int(Y.max()) + 1)).to(GPU)
    learned = distill(student, teacher, X.to(GPU).split(16), how=Distillation(epochs=20, rate=1e-2))
    assert next(learned.parameters()).device.type == GPU
    assert accuracy(learned.cpu()) > 0.7


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("input_bits", [8, 16])
def test_packed_layers_on_the_gpu_compute_what_dense_weights_do(first: bool, input_bits: int) -> None:
    model = Packable().eval()
    small = waterfill.compress(model, spec="Quantize() + LowRank(rank=1) | Codebook(values='ternary')", bits=4)
    if first:
        there = waterfill.pack(small, Packable().to(GPU), input_bits=input_bits)
    else:
        there = waterfill.pack(small, Packable(), input_bits=input_bits).to(GPU)
    tokens = torch.randint(0, 20, (5, 3), device=GPU)
    found, wanted = there(tokens), small.install(Packable().to(GPU))(tokens)
    assert found.device.type == GPU
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-4)


def test_evaluated_on_the_gpu() -> None:
    original = trained()
    small = waterfill.compress(original, X.split(64), bits=2)
    batches = list(zip(X.to(GPU).split(64), Y.to(GPU).split(64), strict=True))
    here = waterfill.evaluate(
        small.install(net()), list(zip(X.split(64), Y.split(64), strict=True)), reference=original
    )
    there = waterfill.evaluate(small.install(net().to(GPU)), batches, reference=original.to(GPU))
    assert abs(there.accuracy - here.accuracy) <= 2 / len(X)
    assert there.divergence == pytest.approx(here.divergence, rel=1e-3)
