"""The last phase of learning: all codes stay as they are, and the numbers beside them are trained."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.scales import Scales
from waterfill.learn.learners.vectors import Vectors, bytes_of
from waterfill.model.compressed import CompressedModel


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
        """The network with its numbers of now, vectors rounded to as many bits as its budget allows, else as it was."""
        made = replace(self._made, entries=self._made.entries | self._scales.entries())
        room = self._vectors.room(made) + self._size - made.size
        entries = self._vectors.entries(made, room, strict=True)
        changed = replace(made, entries=made.entries | entries)
        return changed if bytes_of(entries) <= room and changed.size <= self._size else self._made

    def state(self) -> dict[str, Tensor]:
        return self._vectors.state() | self._scales.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._vectors.load(state)
        self._scales.load(state)
