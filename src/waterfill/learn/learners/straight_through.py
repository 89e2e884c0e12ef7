"""Codes that follow the weights: quantized training with straight-through gradients and the price of bits in view.

Every weight is a code times a scale that stays. Beside its code each has a position on the same axis, in units of the
step, which the optimizer moves by the gradient at the restored weight (straight through the rounding, arXiv
1308.3432). Its code is the one that is cheapest there, squared distance and price times bits together. The bits pull on
the position too, as hard as it takes for the file to have its size.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput, BudgetError
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.vectors import room_of, trained_vectors, with_vectors
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry, encode
from waterfill.parts import Lattice, lattice_of

_DEAD_ZONE = 2 * math.log(2) / 12
"""Price of a bit over the curvature of the loss, in squared steps: what high rates have (docs/theory.md)."""
_INSIDE = 0.45  # of a step: positions lie within so much of the middle of their code's range at first
_ZERO = 0.05  # of a step: nearer to zero, bits do not pull
_FARTHEST = 1 << 20  # that a code may be from zero
_LEAST_MEAN = 1e-3  # of the magnitude of codes in a row or column
_LEAST, _MOST = 2.0**-2, 2.0**8  # of the pull, in multiples of what it is at first
_SLOW, _QUICK = 0.02, 0.01  # too large by this share, a file lets bits pull twice as hard from now on; 4 times, for now
_NEW = 0.5  # of what bits cost is measured anew in a C step: where codes begin is not to jump
_ROUNDS, _NEAR = 30, 1.001  # of prices tried until a file is small enough, each twice the one before; near enough


@dataclass(eq=False)
class _Matrix:
    """One matrix of codes. position [rows, cols]: on the axis of codes, what is trained. slope [rows, cols]: bits that
    a code costs more for each step away from zero."""

    lattice: Lattice
    position: Tensor
    slope: Tensor

    def codes(self, zone: float) -> Tensor:
        """The codes [rows, cols] (float32) that are cheapest where the weights are now."""
        return self.position.sign() * (self.position.abs() - 0.5 * zone * self.slope + 0.5).floor().clamp_min(0)

    def restored(self, codes: Tensor) -> Tensor:
        return codes * self.lattice.row_scales.to(codes) * self.lattice.col_scales.to(codes)

    def remeasure(self, codes: Tensor, share: float) -> None:
        """Let a share of the slopes be those of two-sided geometric densities by row and column of these codes."""
        size = codes.abs()
        whole = size.mean().clamp_min(_LEAST_MEAN)
        rows, cols = size.mean(1, keepdim=True), size.mean(0, keepdim=True)
        mean = (rows * cols / whole).clamp_min(_LEAST_MEAN)
        self.slope = torch.lerp(self.slope, -torch.log2(((1 + mean.square()).sqrt() - 1) / mean), share)

    def settle(self, codes: Tensor, zone: float) -> None:
        """Move positions to where these codes [rows, cols] are the cheapest, well inside: near to where one code ends
        and the next begins, many would change at once."""
        centers = codes + 0.5 * zone * self.slope * codes.sign()
        away = self.position - codes
        self.position.copy_(centers + _INSIDE * away / (0.5 + away.abs()))


class StraightThrough(Learner):
    """A compressed network whose codes are trained; steps and scales stay, and so does the way it is stored.

    Vectors are trained along, and take the bytes that they have in `made`. `model` runs with the restored weights.

    Args:
        model: the network of which `made` was made, with its own weights; it gets the restored ones.
        made: the network compressed to scalar codes, such as `compress(model, batches, spec="Quantize()", bits=1.5)`.
        size: bytes of the file at the end, at most; None for those of `made`.
        pull: how hard bits pull on positions at first, as a share of the gradient of the loss.

    Raises:
        BadInput: where no part of `made` consists of codes that can be changed one by one.
        Mismatch: for another network.
    """

    def __init__(self, model: nn.Module, made: CompressedModel, size: int | None = None, *, pull: float = 0.1) -> None:
        values = dict(model.named_parameters(remove_duplicate=False))
        originals = {name: value.detach().clone() for name, value in values.items() if name in made.entries}
        self._made, self.size = made, made.size if size is None else size
        self.model = made.install(model)
        self._vectors = trained_vectors(model, made)
        self._room = room_of(made, self._vectors)
        self._matrices: dict[str, list[_Matrix]] = {}
        for name, entry in made.entries.items():
            lattices = [lattice_of(part) for part in entry.parts]
            if name in originals and lattices and all(lattice is not None for lattice in lattices):
                targets = entry.layout.split(originals[name])
                self._matrices[name] = [_matrix(x, y) for x, y in zip(lattices, targets, strict=True) if x is not None]
        if not self._matrices:
            raise BadInput('no weight has codes that can be changed one by one; compress with spec="Quantize()"')
        self._values = {name: values[name] for name in self._matrices}
        self._pull, self._zone = pull, _DEAD_ZONE
        self._strength, self._boost = 1.0, 1.0  # of the pull: for good, and until the next C step
        with torch.no_grad():
            for matrix in self._each():
                codes = matrix.lattice.codes.to(matrix.position)
                matrix.remeasure(codes, 1.0)
                matrix.settle(codes, _DEAD_ZONE)
        self.after_step()

    def _each(self) -> Iterator[_Matrix]:
        return chain.from_iterable(self._matrices.values())

    def parameters(self) -> list[Tensor]:
        """The positions, and the vectors."""
        return [matrix.position for matrix in self._each()] + list(self._vectors.values())

    @torch.no_grad()
    def after_backward(self) -> None:
        """The gradient by a position is that by the weight times its scale, and what its bits cost beside."""
        for name, matrices in self._matrices.items():
            gradient = self._values[name].grad
            if gradient is None:
                continue
            entry = self._made.entries[name]
            pieces = gradient.float().reshape(entry.layout.count, *entry.layout.matrix)
            for matrix, piece in zip(matrices, pieces, strict=True):
                slope = matrix.restored(piece)
                typical = slope.abs().mean()
                bits = matrix.slope * matrix.position.sign() * (matrix.position.abs() > _ZERO)
                pull = self._pull * self._strength * self._boost * typical / matrix.slope.mean()
                matrix.position.grad = slope + pull * bits

    @torch.no_grad()
    def after_step(self) -> None:
        """Round every position to its cheapest code, and give the restored weights to the model."""
        for name, matrices in self._matrices.items():
            restored = [matrix.restored(matrix.codes(self._zone)) for matrix in matrices]
            value = self._values[name]
            value.copy_(torch.stack(restored).reshape(value.shape))

    @torch.no_grad()
    def c_step(self) -> None:
        """Measure what codes cost by now, and let bits pull harder or softer, as the file is too large or too small."""
        for matrix in self._each():
            matrix.remeasure(matrix.codes(self._zone), _NEW)
        over = self._coded(self._zone).size / self.size - 1
        self._strength *= 2.0 ** max(-1.0, min(1.0, over / _SLOW))
        self._strength = max(_LEAST, min(_MOST, self._strength))
        self._boost = 4.0 ** max(-2.0, min(2.0, over / _QUICK))
        self.after_step()

    @torch.no_grad()
    def result(self) -> CompressedModel:
        """The network with the codes of now, or those of a higher price where the file would be too large.

        Raises:
            BudgetError: where even codes of zero take too much.
        """
        low = high = self._zone
        made = self._coded(high)
        for _ in range(_ROUNDS):
            if made.size <= self.size:
                break
            low, high = high, 2 * high
            made = self._coded(high)
        if made.size > self.size:
            raise BudgetError(f"a file of {self.size} bytes is asked for, and codes of zero take {made.size}")
        while high > _NEAR * low:
            middle = math.sqrt(low * high)
            found = self._coded(middle)
            low, high, made = (low, middle, found) if found.size <= self.size else (middle, high, made)
        self._zone = high
        self.after_step()
        return made

    def state(self) -> dict[str, Tensor]:
        kept = {"numbers": torch.tensor([self._strength, self._boost, self._zone], dtype=torch.float64, device="cpu")}
        for name, matrices in self._matrices.items():
            for i, matrix in enumerate(matrices):
                kept |= {f"position.{i}.{name}": matrix.position.detach(), f"slope.{i}.{name}": matrix.slope}
        return kept

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        self._strength, self._boost, self._zone = state["numbers"].tolist()
        for name, matrices in self._matrices.items():
            for i, matrix in enumerate(matrices):
                matrix.position.copy_(state[f"position.{i}.{name}"])
                matrix.slope = state[f"slope.{i}.{name}"].to(matrix.position)
        self.after_step()

    def _coded(self, zone: float) -> CompressedModel:
        """The network with its codes at a price, as they are written, and its vectors in the bytes that they had."""
        changed: dict[str, Entry] = {}
        for name, matrices in self._matrices.items():
            codes = [matrix.codes(zone).to(torch.int32).cpu() for matrix in matrices]
            if any(own.numel() and int(own.abs().max()) > _FARTHEST for own in codes):
                raise BadInput(f"the codes of {name!r} have run away in training; lower the rate")
            parts = tuple(m.lattice.with_codes(own) for m, own in zip(matrices, codes, strict=True))
            changed[name] = replace(self._made.entries[name], parts=parts, blob=encode(parts), error=None)
        made = replace(self._made, entries=self._made.entries | changed)
        return with_vectors(made, self._vectors, self._room)


def _matrix(lattice: Lattice, target: Tensor) -> _Matrix:
    """Codes with the positions of the original weights."""
    codes = lattice.codes.to(device=target.device, dtype=torch.float32)
    scales = lattice.row_scales.to(codes) * lattice.col_scales.to(codes)
    position = torch.nan_to_num(target / scales).requires_grad_()
    return _Matrix(lattice, position, torch.ones_like(codes))
