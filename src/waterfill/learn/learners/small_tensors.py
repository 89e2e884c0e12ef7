"""The last phase of learning: norms and biases are trained, all codes stay as they are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.vectors import Vectors, bytes_of
from waterfill.model.compressed import CompressedModel


class SmallTensors(Learner):
    """The vectors of a compressed network, trained with everything else as it is in the file.

    A vector whose entries are equal, as folded norms have them, stays as it is: it takes no bytes.

    Args:
        model: the network of which `made` was made, with its own weights; it gets the compressed ones.
        made: what was compressed before.
        size: bytes of the file at most; None for those of `made`.

    Raises:
        BadInput: where there is no vector to train.
        Mismatch: for another network.
    """

    def __init__(self, model: nn.Module, made: CompressedModel, size: int | None = None) -> None:
        self._made, self._size = made, made.size if size is None else size
        self._vectors = Vectors(model, made, self._size)
        if not self._vectors:
            raise BadInput("no vector of the network is a parameter with different entries: there is nothing to train")
        self.model = made.install(model)
        self._vectors.begin(made)

    def parameters(self) -> list[Tensor]:
        return self._vectors.parameters()

    def groups(self) -> list[dict[str, Any]]:
        return self._vectors.groups()

    def after_backward(self) -> None:
        self._vectors.after_backward()

    def after_step(self) -> None:
        self._vectors.after_step()

    def c_step(self) -> None:
        """Nothing: the codes are frozen."""

    def result(self) -> CompressedModel:
        """The network with its vectors rounded to as many bits as its budget allows, else as it was."""
        room = self._vectors.room(self._made) + self._size - self._made.size
        entries = self._vectors.entries(self._made, room, strict=True)
        changed = replace(self._made, entries=self._made.entries | entries)
        return changed if bytes_of(entries) <= room and changed.size <= self._size else self._made

    def state(self) -> dict[str, Tensor]:
        return self._vectors.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._vectors.load(state)
