"""Files with norms folded into layers beside their originals: what the networks compute is compared."""

import pytest
import torch
from safetensors.torch import save_file
from tests.support.small_networks import Normed, images, lively

import waterfill
from waterfill import Options, Steps
from waterfill.cli.exit_codes import Exit

PLAIN = Options(steps=Steps(stages=1, repair=False))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint with norms far from 1, and its file of 10 bits per weight, norms folded."""
    folder = tmp_path_factory.mktemp("folded")
    model = lively(Normed, images(64))
    for norm in (model.bn1, model.bn2, model.bn3, model.bn4):
        norm.running_var *= 1e-4  # as after weight decay: weights grow a hundredfold when norms are folded
    save_file(model.state_dict(), folder / "net.safetensors")
    made = waterfill.compress(model, images(32).split(8), spec="Quantize()", price=1e-6, options=PLAIN)
    made.save(folder / "net.wf")
    return folder


def test_the_original_is_folded_first(run, place) -> None:
    ran = run("verify", place / "net.wf", "--against", place / "net.safetensors", "--json")
    assert ran.code == Exit.OK and ran.json["folded"] == 4
    assert 0 < ran.json["error"] < 0.1 and ran.json["statistics_error"] < 0.01
    text = run("verify", place / "net.wf", "--against", place / "net.safetensors").out
    assert "4 norms are folded into the layers before them; so were the original's" in text
    assert "relative error of all weights" in text


def test_info_says_that_norms_are_folded(run, place) -> None:
    assert "4 norms are folded into the layers before them" in run("info", place / "net.wf").out
    assert run("info", place / "net.wf", "--json").json["folded"] == {
        "bn1": "conv1",
        "bn2": "conv2",
        "bn3": "up",
        "bn4": "hidden",
    }


def test_statistics_have_a_row_of_their_own(run, place, tmp_path) -> None:
    model = lively(Normed, images(64))
    for norm in (model.bn1, model.bn2, model.bn3, model.bn4):
        norm.running_var *= 1e6
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    waterfill.compress(model, bits=12).save(tmp_path / "net.wf")
    told = run("verify", tmp_path / "net.wf", "--against", tmp_path / "net.safetensors", "--json").json
    state, found = model.state_dict(), waterfill.load(tmp_path / "net.wf").state_dict()
    own = {name: value for name, value in state.items() if value.is_floating_point() and "running" not in name}
    lost = sum(float((found[name].double() - value.double()).square().sum()) for name, value in own.items())
    whole = sum(float(value.double().square().sum()) for value in own.values())
    assert told["error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-6) and told["folded"] == 0
    assert (
        "running statistics of norms"
        in run("verify", tmp_path / "net.wf", "--against", tmp_path / "net.safetensors").out
    )


def test_another_model_of_the_same_class_does_not_pass(run, place, tmp_path) -> None:
    save_file(lively(Normed, images(64), seed=8).state_dict(), tmp_path / "other.safetensors")
    ran = run("verify", place / "net.wf", "--against", tmp_path / "other.safetensors")
    assert ran.code == Exit.VERIFY_FAILED and "as those of two models do" in ran.err


def test_a_file_that_does_not_say_which_cannot_be_compared(run, place, tmp_path) -> None:
    made = waterfill.load(place / "net.wf")
    made.notes["folded"] = True
    made.save(tmp_path / "old.wf")
    ran = run("verify", tmp_path / "old.wf", "--against", place / "net.safetensors")
    assert ran.code == Exit.CORRUPT_INPUT and "does not say which" in ran.err
    assert "it is not said which" in run("info", tmp_path / "old.wf").out
    assert torch.equal(made.state_dict()["head.bias"], waterfill.load(place / "net.wf").state_dict()["head.bias"])
