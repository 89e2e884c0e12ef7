"""Work done elsewhere: the same bytes as here, nothing but text on the way, and errors that name weight and machine."""

import errno
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.networks import state

import waterfill
from waterfill import Options
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.engine.engine import Lost, Serial, answer
from waterfill.compression.engine.version import fingerprint
from waterfill.errors import BadInput, CorruptFile, EngineError, PlanMismatch
from waterfill.storage.work_directory import Journal


@pytest.fixture
def source(tmp_path) -> Path:
    pruned = {"p.weight_orig": torch.randn(20, 30), "p.weight_mask": (torch.rand(20, 30) < 0.3).float()}
    save_file(state() | pruned, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def one_by_one(monkeypatch) -> None:
    """Pieces of one weight each."""
    monkeypatch.setattr("waterfill.compression.engine.remote._MOST", 1)


class Told:
    """Answers in the opposite order, and notes what was asked. change: what is in place of an answer to a piece."""

    slots = 2

    def __init__(self, change: Callable[[str], str | Lost | None] = lambda piece: None) -> None:
        self.pieces: list[str] = []
        self.change = change

    def answers(self, pieces: Sequence[str]) -> Iterator[tuple[int, str | Lost]]:
        for i in reversed(range(len(pieces))):
            self.pieces.append(pieces[i])
            found = self.change(pieces[i])
            yield i, answer(pieces[i]) if found is None else found


def plain(source: Path, **budget: object) -> bytes:
    target = source.with_name("plain.wf")
    waterfill.compress_file(source, target, **budget, options=Options(force=True, threads=1))
    return target.read_bytes()


@pytest.mark.parametrize(
    "budget", [{"bits": 3}, {"price": 1e-4}, {"lossless": True}, {"size": 1500}, {"spec": "Quantize(bits=4, group=16)"}]
)
def test_the_bytes_are_those_of_the_threads_of_this_process(source, tmp_path, budget):
    if {"bits", "size"} & set(budget):  # of few bytes: every weight is tried at many prices
        save_file(
            {name: tensor for name, tensor in state().items() if name in ("a.weight", "a.bias", "c.steps")}, source
        )
    steps, engine = [], Told()
    summary = waterfill.compress_file(
        source, tmp_path / "m.wf", **budget, engine=engine, options=Options(progress=steps.append)
    )
    assert (tmp_path / "m.wf").read_bytes() == plain(source, **budget)
    assert steps[-1].done == steps[-1].total == len(summary.rows)
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "m.wf", "plain.wf"]


def test_pieces_are_references_and_no_data(source, tmp_path):
    engine = Told()
    save_file({name: tensor for name, tensor in state().items() if name != "b.weight"}, source)
    waterfill.compress_file(source, tmp_path / "m.wf", bits=3, engine=engine)
    asked = Counter(json.loads(piece)[1] for piece in engine.pieces)
    assert asked["inspect"] and asked["measure"] and asked["fit"]
    assert max(map(len, engine.pieces)) < 300 * len(waterfill.load(tmp_path / "m.wf").entries)
    assert str(source) in engine.pieces[0]


def test_nothing_is_read_or_fitted_here(source, tmp_path, monkeypatch):
    """Here only single small weights are fitted."""
    inside, here = [False], []
    fit = Weight._fit

    def noted(self: Weight, price: float):
        if not inside[0]:
            here.append(self.name)
        return fit(self, price)

    class Elsewhere(Serial):
        def answers(self, pieces):
            for i, piece in enumerate(pieces):
                inside[0] = True
                done = answer(piece)
                inside[0] = False
                yield i, done

    monkeypatch.setattr(Weight, "_fit", noted)
    waterfill.compress_file(source, tmp_path / "m.wf", price=1e-5, engine=Elsewhere())
    assert here == []


class Killed(BaseException):
    """Not an error: the end of the process."""


def killed_at_the_second_fit() -> Callable[[str], None]:
    seen: list[str] = []

    def change(piece: str) -> None:
        if asked_of(piece) == "fit":
            seen.append(piece)
            if len(seen) == 2:
                raise Killed

    return change


def asked_of(piece: str) -> str:
    return str(json.loads(piece)[1])


def test_what_was_finished_is_not_done_again(source, tmp_path, one_by_one):
    with pytest.raises(Killed):
        waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Told(killed_at_the_second_fit()))
    finished = {int(blob.stem) for blob in (tmp_path / "m.wf.work").glob("*.blob")}
    assert finished
    engine = Told()
    waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=engine)
    again = [item[0] for piece in engine.pieces if asked_of(piece) == "fit" for item in json.loads(piece)[3]]
    assert again and not finished & set(again)
    assert (tmp_path / "m.wf").read_bytes() == plain(source, price=1e-4)


def test_other_values_are_another_job(source, tmp_path, one_by_one):
    with pytest.raises(Killed):
        waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Told(killed_at_the_second_fit()))
    save_file({name: 2 * t if name == "p.weight_orig" else t for name, t in load_file(source).items()}, source)
    with pytest.raises(PlanMismatch, match="tensor 'p.weight_orig' has other values now"):
        waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Serial())


def test_an_error_names_its_weight_and_its_machine(source, tmp_path, monkeypatch, one_by_one):
    fit = Weight.fit

    def broken(self: Weight, price: float):
        if self.name == "a.bias":
            raise raised
        return fit(self, price)

    monkeypatch.setattr(Weight, "fit", broken)
    for raised, kind, told in (
        (
            RuntimeError("it broke"),
            EngineError,
            "(?s)unexpected RuntimeError at the weight 'a.bias', on .*: it broke.*raise raised",
        ),
        (MemoryError(), EngineError, "out of memory at the weight 'a.bias', on .*: it has 64 entries"),
        (BadInput("tensor 'a.bias' is odd"), BadInput, "tensor 'a.bias' is odd"),
        (OSError(errno.ENOSPC, "No space left on device", "blob"), OSError, "No space left on device: 'blob'"),
    ):
        target = tmp_path / f"{type(raised).__name__}.wf"
        with pytest.raises(kind, match=told) as caught:
            waterfill.compress_file(source, target, price=1e-4, engine=Told())
        assert kind is EngineError or f"at the weight 'a.bias', on {socket.gethostname()}" in caught.value.__notes__
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda piece: [[piece[0][0] + ".post1", ""], *piece[1:]], "waterfill is .*, and .*post1 where the job was"),
        (lambda piece: [[piece[0][0], "0" * 16], *piece[1:]], "waterfill .* has other code there than where the job"),
        (lambda piece: moved(piece, "/nowhere/m.safetensors"), "/nowhere/m.safetensors is not to be seen there"),
        (lambda piece: [*piece[:2], ["/nowhere/m.wf.work", 0], piece[3]], "the work directory /nowhere/m.wf.work of"),
    ],
)
def test_a_machine_that_differs_is_refused(source, tmp_path, wrong, told):
    def change(piece: str) -> str | None:
        return as_to(piece, answer(json.dumps(wrong(json.loads(piece))))) if asked_of(piece) == "fit" else None

    with pytest.raises(EngineError, match=f"{socket.gethostname()}: {told}"):
        waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Told(change))


def as_to(piece: str, said: str) -> str:
    """An answer under the fingerprint of another piece."""
    return json.dumps(json.loads(said) | {"piece": fingerprint(piece)})


def moved(piece: list, path: str) -> list:
    for item in piece[3]:
        item[1][0] = path
    return piece


def test_a_file_that_was_changed_is_refused(source, tmp_path):
    def change(piece: str) -> None:
        if asked_of(piece) == "fit":
            with source.open("ab") as file:
                file.write(b"more")

    with pytest.raises(EngineError, match=r"m.safetensors has \d+ bytes there, and \d+ where the job was begun"):
        waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Told(change))


class Deadly:
    """Whose processes die of a weight: in the first `times` pieces that hold it."""

    def __init__(self, name: str, times: int) -> None:
        self.name, self.left, self.died = name, times, []

    def __call__(self, piece: str) -> Lost | None:
        names = [item[1][2] for item in json.loads(piece)[3]]
        if asked_of(piece) != "fit" or self.name not in names or not self.left:
            return None
        self.left -= 1
        self.died.append(names)
        return Lost("its process died")


def test_who_is_only_beside_a_weight_that_kills_is_not_lost(source, tmp_path):
    deadly = Deadly("b.weight", 3)
    with pytest.raises(EngineError, match="no process survives the weight 'b.weight' of .*: its process died"):
        waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Told(deadly))
    assert len(deadly.died[0]) > 1 and deadly.died[1:] == [["b.weight"], ["b.weight"]]
    finished = len(list((tmp_path / "m.wf.work").glob("*.blob")))
    assert finished == len(deadly.died[0]) - 1 > 5


def test_chance_that_kills_twice_is_survived(source, tmp_path):
    waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Told(Deadly("b.weight", 2)))
    assert (tmp_path / "m.wf").read_bytes() == plain(source, price=1e-4)


def test_a_blob_that_another_hand_changed_is_not_written(source, tmp_path, monkeypatch):
    adopt = Journal.adopt

    def spoiled(self: Journal, i: int, note: dict, staged: str) -> None:
        adopt(self, i, note, staged)
        if note["words"] and i == 0:
            (self.folder / "0.blob").write_bytes(b"another")

    monkeypatch.setattr(Journal, "adopt", spoiled)
    with pytest.raises(CorruptFile, match="m.wf.work: blob 0 is not what was written there"):
        waterfill.compress_file(source, tmp_path / "m.wf", price=1e-4, engine=Serial())
    assert not (tmp_path / "m.wf").exists()


@pytest.mark.parametrize("said", ["{", "[]", "null", None, '[{"kept": ""}]', '{"piece": 1}'])
def test_an_engine_that_answers_something_else_is_refused(source, tmp_path, one_by_one, said):
    engine = Told()
    engine.answers = lambda pieces: [(i, said) for i in range(len(pieces))]
    with pytest.raises(EngineError, match=r"the engine Told gives .* for a piece of 1 weights, the first of them '.*'"):
        waterfill.compress_file(source, tmp_path / "a.wf", bits=3, engine=engine)
    assert source.exists() and not (tmp_path / "a.wf").exists()


def test_a_blob_is_taken_from_its_own_place_alone(source, tmp_path, one_by_one):
    # any file that the answer named was moved into the work directory
    def elsewhere(piece):
        said = json.loads(answer(piece))
        weights = [one | ({"staged": "../m.safetensors"} if "staged" in one else {}) for one in said["weights"]]
        return json.dumps(said | {"weights": weights})

    with pytest.raises(EngineError, match="unchanged"):
        waterfill.compress_file(source, tmp_path / "a.wf", spec="Quantize()", price=1e-3, engine=Told(elsewhere))
    assert source.exists()


def test_pieces_are_answered_by_their_own_numbers_and_once(source, tmp_path, one_by_one):
    class Twice(Told):
        def answers(self, pieces):
            found = list(super().answers(pieces))
            return found + found

    class Beyond(Told):
        def answers(self, pieces):
            return [(i + 99, text) for i, text in super().answers(pieces)]

    waterfill.compress_file(source, tmp_path / "a.wf", bits=3, engine=Twice())
    assert (tmp_path / "a.wf").read_bytes() == plain(source, bits=3)
    with pytest.raises(EngineError, match="the engine Beyond answers piece 1"):
        waterfill.compress_file(source, tmp_path / "b.wf", bits=3, engine=Beyond())


def test_what_is_no_engine_is_refused_before_the_work(source, tmp_path):
    with pytest.raises(EngineError, match=r"engine='dask' is no engine; give waterfill.Dask"):
        waterfill.compress_file(source, tmp_path / "m.wf", bits=4, engine="dask")
    assert list(tmp_path.iterdir()) == [source]
