"""Pieces of work and their answers know each other, and what is neither is an error of ours."""

import json
from collections.abc import Iterator, Sequence

import pytest
import torch
from safetensors.torch import save_file

import waterfill
from waterfill.compression.engine.engine import answer
from waterfill.errors import EngineError


class Stale:
    """Answers what was asked to measure as a job with another recipe was answered."""

    slots = 1

    def answers(self, pieces: Sequence[str]) -> Iterator[tuple[int, str]]:
        for i, piece in enumerate(pieces):
            version, do, work, items = json.loads(piece)
            if do == "measure":
                items[0][2] = "Quantize(bits=2)"
            yield i, answer(json.dumps([version, do, work, items]))


def test_the_answer_to_another_recipe_is_refused(tmp_path):
    save_file({"a.weight": torch.randn(64, 32)}, tmp_path / "m.safetensors")
    told = "the engine Stale gives the answer to another piece of work for that of 'a.weight'"
    with pytest.raises(EngineError, match=told):
        waterfill.compress_file(tmp_path / "m.safetensors", tmp_path / "m.wf", bits=3, engine=Stale())


@pytest.mark.parametrize("text", ["garbage", "", "[]", "{}", "null", '["0.1.0", "fit", null, []]', None])
def test_a_text_that_is_no_piece_is_an_error_of_ours(text):
    with pytest.raises(EngineError, match="is no piece of work"):
        answer(text)
