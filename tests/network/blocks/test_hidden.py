"""Hidden states: in memory up to a limit, beyond it on disk; a full disk and damage are errors that say what to do."""

import builtins
import errno
from pathlib import Path

import pytest
import torch

from waterfill.errors import CorruptFile
from waterfill.network.blocks.hidden import HiddenStates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory", [0, 100, 1 << 20])
def test_a_state_comes_back_bit_for_bit_wherever_it_is_kept(tmp_path, dtype, memory):
    states = HiddenStates(tmp_path, memory)
    values = {f"x{i}": torch.randn(3, 5, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(4)}
    for name, value in values.items():
        states.put(name, value)
    states.put("x1", values["x2"])
    states.get("x0").zero_()  # a copy, that may be written to
    got = {name: states.get(name) for name in values}
    assert all(torch.equal(got[name], values["x2" if name == "x1" else name]) for name in values)
    assert bool(list(tmp_path.iterdir())) == (memory < 4 * 15 * values["x0"].element_size())
    states.drop("x")
    assert "x0" not in states and not list(tmp_path.iterdir())


def test_another_process_goes_on_with_what_is_on_disk(tmp_path):
    HiddenStates(tmp_path, 0).put("h3-1", torch.arange(6.0))
    (tmp_path / "h4.tmp").write_bytes(b"half")
    later = HiddenStates(tmp_path, 0)
    assert torch.equal(later.get("h3-1"), torch.arange(6.0)) and not (tmp_path / "h4.tmp").exists()


def test_a_full_disk_says_what_to_do_and_leaves_no_half_state(tmp_path, monkeypatch):
    plain = builtins.open

    def full(path, mode="r", *args, **kwargs):
        file = plain(path, mode, *args, **kwargs)
        if "w" in mode and Path(path).suffix == ".tmp":

            class Full:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, data):
                    file.write(bytes(data)[:3])
                    raise OSError(errno.ENOSPC, "No space left on device")

            return Full()
        return file

    states = HiddenStates(tmp_path, 0)
    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(OSError, match="fewer inputs, or a work directory elsewhere") as caught:
        states.put("x0", torch.ones(9))
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path):
    states = HiddenStates(tmp_path, 0)
    states.put("x0", torch.ones(9))
    path = tmp_path / "x0.state"
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\xff")
    with pytest.raises(CorruptFile, match="delete the work directory"):
        states.get("x0")
