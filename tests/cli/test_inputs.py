"""Inputs and models named in text: what is read, and what is refused in which words."""

import numpy as np
import pytest
import torch
from torch import nn

from waterfill.cli.exit_codes import UsageError
from waterfill.cli.inputs import load_inputs, load_model
from waterfill.errors import BadInput

MODULE = """
import torch
from torch import nn

def batches():
    return [torch.zeros(2, 3), torch.ones(2, 3)]

def lazily():
    yield torch.zeros(2, 3)

def tensor():
    return torch.zeros(70, 3)

def model():
    return nn.Linear(3, 2)

def both():
    return model(), batches()

class Loader:
    batches = staticmethod(batches)

def nothing():
    pass

def text():
    return "batches"

def broken():
    raise KeyError("label")

def named():
    return {"x": torch.zeros(2, 3)}

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a module whose name no other test uses."""
    name = "inputs_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function_gives_batches_a_model_or_both(here):
    assert [b.sum() for b in load_inputs(f"{here}:batches").batches] == [0, 6]
    assert len(list(load_inputs(f"{here}:lazily").batches)) == 1
    assert [len(b) for b in load_inputs(f"{here}:tensor").batches] == [32, 32, 6]
    assert len(load_inputs(f"{here}:Loader.batches").batches) == 2
    own = nn.Linear(2, 2)
    assert load_inputs(f"{here}:batches", own).model is own
    found = load_inputs(f"{here}.py:both", own)
    assert found.model.in_features == 3 and len(found.batches) == 2
    assert load_model(f"{here}:model").out_features == 2 and load_model(f"{here}:both").out_features == 2


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "returned nothing"),
        ("text", "a str"),
        ("named", "a dict"),
        ("model", "a Linear"),
        ("broken", "KeyError: 'label'"),
        ("missing", "no function 'missing'"),
        ("number", "no function 'number'"),
    ],
)
def test_functions_that_give_no_batches(here, function, words):
    with pytest.raises(UsageError if "no function" in words else BadInput, match=words) as caught:
        load_inputs(f"{here}:{function}")
    assert (function == "broken") == isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("text", ["", "module", "module:", ":function", "no.such.module:function"])
def test_names_of_nothing(here, text):
    for load in (load_inputs, load_model):
        with pytest.raises(UsageError, match="module"):
            load(text)


def test_modules_and_models_that_fail(here):
    with pytest.raises(BadInput, match="no_such_module_at_all"):
        load_inputs(f"{here}_broken:batches")
    with pytest.raises(BadInput, match=r"returned a list.*torch.nn.Module"):
        load_model(f"{here}:batches")


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("float64", torch.float32), ("float16", torch.float32), ("int32", torch.int64), ("uint8", torch.int64)],
)
def test_an_array_is_cut_into_batches(tmp_path, stored, wanted):
    values = np.arange(70 * 6).reshape(70, 2, 3) % 100
    np.save(tmp_path / "x.npy", values.astype(stored))
    batches = load_inputs(str(tmp_path / "x.npy")).batches
    assert [tuple(b.shape) for b in batches] == [(32, 2, 3), (32, 2, 3), (6, 2, 3)]
    assert torch.equal(torch.cat(list(batches)), torch.from_numpy(values).to(wanted))


@pytest.mark.parametrize("names", [("anything",), ("labels", "x"), ("inputs", "y"), ("images", "labels")])
def test_the_inputs_of_an_archive(tmp_path, names):
    arrays = {name: np.full((3, 2), float(name in ("anything", "x", "inputs", "images"))) for name in names}
    np.savez(tmp_path / "a.npz", **arrays)
    assert torch.equal(load_inputs(str(tmp_path / "a.npz")).batches[0], torch.ones(3, 2))


def test_files_that_hold_no_inputs(tmp_path):
    def refused(name, words):
        with pytest.raises(BadInput, match=words):
            load_inputs(str(tmp_path / name))

    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    refused("two.npz", "arrays a, b")
    np.savez(tmp_path / "both.npz", x=np.ones(3), inputs=np.ones(3))
    refused("both.npz", "arrays x, inputs")
    np.savez(tmp_path / "none.npz")
    refused("none.npz", "none")
    np.save(tmp_path / "scalar.npy", np.float32(3))
    refused("scalar.npy", "first axis")
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    refused("empty.npy", r"\[0, 3\]")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    refused("words.npy", "real numbers")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused("objects.npy", "pickle")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:50])
    refused("cut.npz", "numpy")
    (tmp_path / "text.npy").write_text("no array")
    refused("text.npy", "numpy")
    refused("missing.npy", "not there")


def test_targets_of_an_archive_are_read_where_they_are_wanted(here):
    np.savez("labelled.npz", x=np.ones((40, 3)), labels=np.arange(40))
    batches = load_inputs("labelled.npz", targets=True).batches
    assert [(x.shape, y.tolist()) for x, y in batches] == [((32, 3), list(range(32))), ((8, 3), list(range(32, 40)))]
    assert all(isinstance(batch, torch.Tensor) for batch in load_inputs("labelled.npz").batches)
    np.savez("uneven.npz", x=np.ones((40, 3)), labels=np.arange(39))
    with pytest.raises(BadInput, match=r"\[40, 3\] and \[39\]; give one target for each input"):
        load_inputs("uneven.npz", targets=True)


def test_a_module_that_is_not_there_is_told_from_one_that_it_imports(here):
    with pytest.raises(UsageError, match="'no_such_file'.*current folder"):
        load_inputs("no_such_file:batches")
    with pytest.raises(BadInput, match="no_such_module_at_all'$"):
        load_inputs(f"{here}_broken:batches")
