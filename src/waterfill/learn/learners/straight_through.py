"""Codes that follow the weights: quantized training with straight-through gradients and the price of bits in view.

Every weight is a code times a scale that stays. Beside its code each has a position on the same axis, in units of the
step, which the optimizer moves by the gradient at the restored weight (straight through the rounding, arXiv
1308.3432). Its code is the one that is cheapest there, squared distance and price times bits together. The bits pull on
the position too, as hard as it takes for the file to have its size. Codes go to and fro between neighbors as long as
there is training; those that are written are the cheapest where the positions were on average of late
(polynomial-decay averaging, arXiv 1212.1824).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput, BudgetError
from waterfill.learn.learners.codes import DEAD_ZONE, Composed, Matrix, composed_at
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.vectors import Vectors, can_be_learned, check_shapes
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry, encode
from waterfill.network.running.wrapped import unwrapped
from waterfill.parts import by_codes

_ZERO = 0.05  # of a step: nearer to zero, bits pull in proportion, not at full strength
_LEAST, _MOST = 2.0**-8, 2.0**8  # of the pull, in multiples of `pull`
_SLOW, _QUICK = 0.02, 0.01  # too large by this share, a file lets bits pull twice as hard from now on; 4 times, for now
_NEW = 0.5  # of what bits cost is measured anew in a C step: where codes begin is not to jump
_DECAY = 9.0  # of weights in the average: half of it is the last 7 % of the steps so far
_ROUNDS, _NEAR = 30, 1.001  # of prices tried until a file is small enough, each twice the one before; near enough


def has_codes(made: CompressedModel) -> bool:
    """Whether a compressed network has codes that can be changed one by one."""
    return any(by_codes(part).leaves for entry in made.entries.values() for part in entry.parts)


class StraightThrough(Learner):
    """A compressed network whose codes are trained; steps and scales stay, and so does the way it is stored.

    Vectors are trained along, and written as exactly as in `made`. `model` runs with the restored weights. Codes in
    low-rank factors, in what pruning keeps and in sums are trained too; codes along a trellis stay.

    Args:
        model: the network of which `made` was made, with its own weights; it gets the restored ones.
        made: the network compressed to scalar codes, such as `compress(model, batches, spec="Quantize()", bits=1.5)`.
        size: bytes of the file at the end, at most; None for those of `made`.
        pull: how hard bits pull on positions at first, as a share of the gradient of the loss, where `made` is larger.

    Raises:
        BadInput: where no part of `made` consists of codes that can be changed one by one.
        Mismatch: for another network.
    """

    def __init__(self, model: nn.Module, made: CompressedModel, size: int | None = None, *, pull: float = 0.1) -> None:
        model = unwrapped(model)
        values = dict(model.named_parameters(remove_duplicate=False))
        originals = {
            name: v.detach().clone() for name, v in values.items() if name in made.entries and can_be_learned(v)
        }
        check_shapes(values, made)
        self._made, self.size = made, made.size if size is None else size
        self._vectors = Vectors(model, made, self.size)
        self.model = made.install(model)
        self._vectors.begin(made)
        self._composed: dict[str, list[Composed]] = {}
        for name, entry in made.entries.items():
            found = [by_codes(part) for part in entry.parts]
            if name in originals and any(one.leaves for one in found):
                targets = entry.layout.split(originals[name])
                self._composed[name] = [composed_at(one, target) for one, target in zip(found, targets, strict=True)]
        if not self._composed:
            frozen = all(value.ndim < 2 for value in originals.values())
            raise BadInput(
                "every matrix of the network is frozen (requires_grad=False): let some of them learn"
                if frozen
                else 'no weight has codes that can be changed one by one; compress with spec="Quantize()"'
            )
        self._values = {name: values[name] for name in self._composed}
        self._pull, self._zone = pull, DEAD_ZONE
        # Of the pull, for good and until the next C step: next to none at first where the file has its size already.
        self._strength, self._boost = (_LEAST if made.size <= self.size else 1.0), 1.0
        self._steps = 0
        with torch.no_grad():
            for _, matrix in self._each():
                codes = matrix.lattice.codes.to(matrix.position)
                matrix.remeasure(codes, 1.0)
                matrix.settle(codes, DEAD_ZONE)
            self._show()

    def _each(self) -> Iterator[tuple[str, Matrix]]:
        """Every matrix of codes, and a name for it."""
        for name, several in self._composed.items():
            numbers = count()
            for one in several:
                yield from ((f"{next(numbers)}.{name}", matrix) for matrix in one.matrices)

    def parameters(self) -> list[Tensor]:
        """The positions, and the vectors."""
        return [matrix.position for _, matrix in self._each()] + self._vectors.parameters()

    def groups(self) -> list[dict[str, Any]]:
        positions = [matrix.position for _, matrix in self._each()]
        return [{"params": positions, "pace": 1.0}, *self._vectors.groups()]

    @torch.no_grad()
    def after_backward(self) -> None:
        """The gradient by a position is that by the weight times its scale, and what its bits cost beside."""
        for name, several in self._composed.items():
            gradient = self._values[name].grad
            if gradient is None:
                continue
            entry = self._made.entries[name]
            pieces = gradient.float().reshape(entry.layout.count, *entry.layout.matrix)
            for one, piece in zip(several, pieces, strict=True):
                for matrix, by_restored in zip(one.matrices, one.slopes(piece), strict=True):
                    matrix.position.grad = self._slope(matrix, by_restored)
            self._values[name].grad = None  # else the next backward pass would add to it
        self._vectors.after_backward()

    def _slope(self, matrix: Matrix, by_restored: Tensor) -> Tensor:
        """The gradient by the positions of codes: that of the loss, and the pull of the bits."""
        slope = matrix.restored(by_restored)
        mean = torch.linalg.vector_norm(slope, 1) / slope.numel()
        pull = self._pull * self._strength * self._boost * mean / matrix.slope.mean()
        bits = (matrix.position / _ZERO).clamp_(-1, 1).mul_(matrix.slope)
        return slope.add_(bits.mul_(pull))

    @torch.no_grad()
    def after_step(self) -> None:
        """Round every position to its cheapest code, and give the restored weights to the model."""
        self._steps += 1
        share = (_DECAY + 1) / (_DECAY + self._steps)
        for _, matrix in self._each():
            matrix.average_in(share)
        self._show()

    def _show(self, *, average: bool = False) -> None:
        """Give the model the weights of the codes of now, or of those on average, and the vectors."""
        for name, several in self._composed.items():
            value = self._values[name]
            found = [one.restore(self._zone, average=average).to(value.device) for one in several]
            value.copy_((found[0] if len(found) == 1 else torch.stack(found)).reshape(value.shape))
        self._vectors.after_step()

    @torch.no_grad()
    def c_step(self) -> None:
        """Measure what codes cost by now, and let bits pull harder or softer, as the file is too large or too small."""
        for _, matrix in self._each():
            matrix.remeasure(matrix.codes(self._zone), _NEW)
        self.file_size = self._coded(self._zone, self._written(), average=False).size  # an average would lag behind
        over = self.file_size / self.size - 1
        self._strength *= 2.0 ** max(-1.0, min(1.0, over / _SLOW))
        self._strength = max(_LEAST, min(_MOST, self._strength))
        self._boost = 4.0 ** max(-2.0, min(2.0, over / _QUICK))
        self._show()

    @torch.no_grad()
    def result(self) -> CompressedModel:
        """The network with the codes of late, or those of a higher price where the file would be too large.

        Raises:
            BudgetError: where even codes of zero take too much.
        """
        low, high, vectors = self._zone, self._zone, self._written()
        made = self._coded(high, vectors)
        for _ in range(_ROUNDS):
            if made.size <= self.size:
                break
            low, high = high, 2 * high
            made = self._coded(high, vectors)
        if made.size > self.size:
            raise BudgetError(f"a file of {self.size} bytes is asked for, and codes of zero take {made.size}")
        while high > _NEAR * low:
            middle = math.sqrt(low * high)
            found = self._coded(middle, vectors)
            low, high, made = (low, middle, found) if found.size <= self.size else (middle, high, made)
        self._zone = high
        self._show(average=True)
        return made

    def state(self) -> dict[str, Tensor]:
        numbers = [self._strength, self._boost, self._zone, float(self._steps)]
        kept = {"numbers": torch.tensor(numbers, dtype=torch.float64, device="cpu")}
        for name, matrix in self._each():
            kept |= {f"position.{name}": matrix.position.detach(), f"average.{name}": matrix.average}
            kept[f"slope.{name}"] = matrix.slope
        return kept | self._vectors.state()

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        self._strength, self._boost, self._zone, steps = state["numbers"].tolist()
        self._steps = int(steps)
        for name, matrix in self._each():
            matrix.position.copy_(state[f"position.{name}"])
            matrix.average.copy_(state[f"average.{name}"])
            matrix.slope = state[f"slope.{name}"].to(matrix.position)
        self._vectors.load(state)
        self._show()

    def _written(self) -> dict[str, Entry]:
        """The vectors as they are written, in the bytes that they had or what it takes to be as exact as they were."""
        return self._vectors.entries(self._made, self._vectors.room(self._made), strict=False)

    def _coded(self, zone: float, vectors: Mapping[str, Entry], *, average: bool = True) -> CompressedModel:
        """The network with its codes at a price, those of late on average or those of now, and its vectors."""
        changed: dict[str, Entry] = {}
        for name, several in self._composed.items():
            parts = tuple(one.part(zone, name, average=average) for one in several)
            changed[name] = replace(self._made.entries[name], parts=parts, blob=encode(parts), error=None)
        return replace(self._made, entries={**self._made.entries, **vectors, **changed})
