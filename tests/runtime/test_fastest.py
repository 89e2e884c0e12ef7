"""The fastest form of a layer is found by measurement, and what was measured is kept for later processes."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import waterfill
from waterfill.errors import BadInput
from waterfill.runtime import Fastest, table
from waterfill.runtime.blocked import crossover
from waterfill.runtime.measured.fastest import FORMS
from waterfill.storage import measured

X = torch.linspace(-1, 1, 3 * 128).reshape(3, 128)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 200), nn.ReLU(), nn.Linear(200, 10))


@pytest.fixture(scope="module")
def compressed() -> waterfill.CompressedModel:
    torch.manual_seed(0)
    return waterfill.compress(build(), bits=4)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which measurements are kept."""
    monkeypatch.setenv(measured.PLACE, str(tmp_path))
    return tmp_path


def prefer(folder: Path, form: str) -> None:
    """Let a form be the fastest of all that was measured."""
    (path,) = folder.glob("*.json")
    file = json.loads(path.read_text())
    for key, times in file["found"].items():
        file["found"][key] = {name: 1e-6 if name == form else 1e-3 for name in times}
    path.write_text(json.dumps(file))


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "said", "error"),
    [
        ("packed", ("packed", "bit codes"), 1e-3),
        ("int8", ("packed", "bit codes"), 0.03),
        ("bfloat16", ("dense", "bfloat16 weights"), 0.01),
        ("dense", ("dense", "restored weights"), 1e-6),
    ],
)
def test_what_was_measured_before_decides(
    compressed: waterfill.CompressedModel, kept: Path, form: str, said: tuple[str, str], error: float
) -> None:
    how = Fastest((1, 16), FORMS)
    waterfill.pack(compressed, build(), batch=how)
    prefer(kept, form)
    packed = waterfill.pack(compressed, build(), batch=how)
    wanted: Tensor = compressed.install(build()).eval()(X)
    for row in table(packed):
        assert row["runs"] == said[0] and said[1] in row["form"]
        assert row["why"].startswith(f"{form} is fastest: ")
        assert all(f"µs {name}" in row["why"] for name in FORMS) and "at 16 inputs" in row["why"]
    lost = (packed(X) - wanted).norm() / wanted.norm()
    assert lost < error and (form != "int8" or lost > 1e-3)


def test_each_shape_and_batch_is_measured_once(compressed: waterfill.CompressedModel, kept: Path) -> None:
    waterfill.pack(compressed, build(), batch=1)
    (path,) = kept.glob("*.json")
    before = path.read_bytes()
    assert len(json.loads(before)["found"]) == 2
    waterfill.pack(compressed, build(), batch=1)
    assert path.read_bytes() == before
    waterfill.pack(compressed, build(), batch=Fastest((1,), ("packed", "bfloat16")))  # a form that was not timed
    assert len(json.loads(path.read_bytes())["found"]) == 2 and path.read_bytes() != before
    waterfill.pack(compressed, build(), batch=4)
    waterfill.pack(compressed, build(), batch=4, input_bits=8)
    assert len(json.loads(path.read_bytes())["found"]) == 6


def test_a_memory_of_half_the_weights(compressed: waterfill.CompressedModel) -> None:
    rows = table(waterfill.pack(compressed, build(), batch=Fastest(forms=("bfloat16",))))
    assert [row["bytes"] for row in rows] == [2 * 128 * 200, 2 * 200 * 10]


def test_what_cannot_be_chosen_is_refused(compressed: waterfill.CompressedModel) -> None:
    for wrong in ({"batches": ()}, {"batches": (0,)}, {"forms": ()}, {"forms": ("packed", "quick")}):
        with pytest.raises(BadInput, match="give "):
            Fastest(**wrong)  # type: ignore[arg-type]  # which is what is tested
    with pytest.raises(BadInput, match="no number of inputs"):
        waterfill.pack(compressed, build(), batch=0)


def test_the_least_large_batch_is_kept(kept: Path) -> None:
    kind = crossover.Kind(64, 64, 3, 2, torch.float32)
    crossover.crossover.cache_clear()
    found = crossover.crossover(kind)
    (path,) = kept.glob("*.json")
    file = json.loads(path.read_text())
    assert list(file["found"].values()) == [[found[0], "torch.float32"]]
    (key,) = file["found"]
    for said, wanted in (([4096, "torch.float32"], 4096), ([4096, "torch.int8"], None), ([3, "torch.float32"], None)):
        path.write_text(json.dumps(file | {"found": {key: said}}))
        crossover.crossover.cache_clear()
        again = crossover.crossover(kind)
        assert again == (4096, torch.float32) if wanted else again[0] >= crossover.LEAST and again[0] != said[0]
    crossover.crossover.cache_clear()
