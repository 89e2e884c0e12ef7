"""The last phase of learning: all codes stay as they are, and the numbers beside them are trained."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from waterfill.errors import BadInput, BudgetError
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.scales import Scales
from waterfill.learn.learners.vectors import Vectors
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.wrapped import unwrapped

_LEAST = (0.0, 0.13, 0.22, 0.4, math.inf)
"""Relative changes below which scales stay where they were, tried in turn; an eighth of an octave is 0.087."""
_TRIED = 5  # amounts of room for vectors: the list of tensors in a file grows and shrinks by some bytes too


class FrozenCodes(Learner):
    """All of a compressed network that is no code is trained: norms and biases, steps and scales, the levels of
    codebooks, and entries that pruning keeps as they are.

    A vector whose entries are equal, as folded norms have them, stays as it is: it takes no bytes. So does what is
    stored to the bit.

    Args:
        model: the network of which `made` was made, with its own weights; it gets the compressed ones.
        made: what was compressed before.
        size: bytes of the file at most; None for those of `made`.

    Raises:
        BadInput: where there is nothing to train.
        Mismatch: for another network.
    """

    def __init__(self, model: nn.Module, made: CompressedModel, size: int | None = None) -> None:
        model = unwrapped(model)
        self._made, self._size = made, made.size if size is None else size
        self._vectors = Vectors(model, made, self._size)
        self.model = made.install(model)
        self._scales = Scales(self.model, made)
        if not self._vectors and not self._scales:
            raise BadInput(
                "no vector of the network is a parameter with different entries, and no weight has scales or levels: "
                "there is nothing to train"
            )
        self._vectors.begin(made)

    def parameters(self) -> list[Tensor]:
        return self._vectors.parameters() + self._scales.parameters()

    def groups(self) -> list[dict[str, Any]]:
        return self._vectors.groups() + self._scales.groups()

    def after_backward(self) -> None:
        self._vectors.after_backward()
        self._scales.after_backward()

    def after_step(self) -> None:
        self._vectors.after_step()
        self._scales.after_step()

    def c_step(self) -> None:
        """Nothing: the codes are frozen."""

    def result(self) -> CompressedModel:
        """The network with its numbers of now, vectors rounded to as many bits as its budget allows.

        Where it would have too many bytes, scales stay where they were that have moved least; then whatever would take
        more bytes than before.

        Raises:
            BudgetError: where that has too many.
        """
        scales = self._scales.entries()
        for least in _LEAST:
            some = self._scales.shorter(scales, least) if least else scales
            made = replace(self._made, entries=self._made.entries | some)
            room = self._vectors.room(made) + self._size - made.size
            for _ in range(_TRIED):
                vectors = self._vectors.entries(made, room, strict=True)
                changed = replace(made, entries=made.entries | vectors)
                if changed.size <= self._size:
                    return changed
                room -= changed.size - self._size
        before = self._made.entries
        learned = scales | vectors
        small = {name: own for name, own in learned.items() if len(own.blob) <= len(before[name].blob)}
        for some in (small, {name: own for name, own in small.items() if own.words == before[name].words}):
            changed = replace(self._made, entries=before | some)  # the words stand in the file as well
            if changed.size <= self._size:
                return changed
        raise BudgetError(
            f"a file of {self._size} bytes is asked for, and the one before training has {self._made.size}: what is "
            "beside codes cannot be that much smaller; compress to fewer bytes first"
        )

    def state(self) -> dict[str, Tensor]:
        return self._vectors.state() | self._scales.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._vectors.load(state)
        self._scales.load(state)
