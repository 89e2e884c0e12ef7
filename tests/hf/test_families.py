"""Six families of transformers through a folder and back, dense and packed."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers, the extra [hf]: `make test-hf`")

from tests.support.hf_models import FAMILIES, build, inputs_of

import waterfill
import waterfill.hf
from waterfill import runtime

PACKED_TO = 1e-4
"""The most that outputs of a packed network differ from those of the dense one, relative: about four digits."""
DENSE = ("experts", "cls_token", "position")
"""Words in the names of what is no layer, or is fused on loading."""


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory) -> tuple[str, Path]:
    """A family, and the compressed folder of a network of it."""
    path = tmp_path_factory.mktemp(request.param)
    build(request.param).save_pretrained(path / "original")
    waterfill.hf.compress_folder(path / "original", path / "small", bits=4.5)
    return request.param, path / "small"


@torch.no_grad()
def logits(model: torch.nn.Module, family: str) -> torch.Tensor:
    return model(**inputs_of(family)).logits


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_dense_it_is_what_the_file_restores(case):
    """Against the tensors of the file by their names on disk, which transformers renames and fuses by itself."""
    family, folder = case
    original, dense = build(family), waterfill.hf.load(folder)
    state = waterfill.load(folder / "model.wf").state_dict()
    restored = type(original).from_pretrained(None, config=original.config, state_dict=state).eval()
    assert type(dense) is type(original) and not dense.training
    assert torch.equal(logits(dense, family), logits(restored, family))
    assert 0.01 < relative(logits(dense, family), logits(original, family)) < 0.2  # it is compressed, and not random


def test_packed_it_says_the_same_in_less_memory(case):
    family, folder = case
    dense, packed = waterfill.hf.load(folder), waterfill.hf.load(folder, packed=True)
    assert relative(logits(packed, family), logits(dense, family)) < PACKED_TO
    dense_rows = [row["name"] for row in runtime.table(packed) if row["runs"] != "packed"]
    assert all(any(word in name for word in DENSE) for name in dense_rows), dense_rows
    assert held_bytes(packed) < (0.9 if family == "Mixtral" else 0.3) * held_bytes(dense)
    assert not any(value.is_meta for value in [*packed.parameters(), *packed.buffers()])


def held_bytes(model: torch.nn.Module) -> int:
    tensors = {id(value): value for value in [*model.parameters(), *model.buffers()]}
    return sum(value.numel() * value.element_size() for value in tensors.values())


@pytest.mark.parametrize("packed", [False, True])
def test_saved_again_it_is_the_same_file(case, packed, tmp_path):
    family, folder = case
    model = waterfill.hf.load(folder, packed=packed)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.wf").read_bytes() == (folder / "model.wf").read_bytes()
    assert not list((tmp_path / "again").glob("*.safetensors"))
    again = waterfill.hf.load(tmp_path / "again", packed=packed)
    assert torch.equal(logits(again, family), logits(model, family))
