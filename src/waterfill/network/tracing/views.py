"""Finds which rows of which weight a tensor is.

A weight is known by the memory it lies in, so that slices and transposes of it count as the weight; so does what is
computed from a weight as a multiple of its rows: a copy, a cast, a weight made of a direction and a length.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from waterfill.network.layout import KERNEL, STACK, Layout
from waterfill.network.tracing.derived import multiple_of_rows


@dataclass(frozen=True)
class WeightView:
    """The place of a tensor in a weight: rows start to stop of it or of one matrix of a stack; transposed or not.

    factors: of these rows before they were used, [rows]; None for none. moved: whether a number, such as its mean, was
    also added to each row. matrix: its number in a stack; None for the whole stack, and where there is none.
    """

    name: str
    rows: tuple[int, int]
    transposed: bool = False
    factors: Tensor | None = field(default=None, compare=False)
    moved: bool = False
    matrix: int | None = field(default=None, compare=False)

    def times(self, values: Tensor, dim: int = 0, power: int = 1) -> Tensor:
        """Inputs or gradients of the rows along `dim`, multiplied by the factors that relate them to the weight."""
        if self.factors is None:
            return values
        shape = [1] * values.ndim
        shape[dim] = -1
        return values * self.factors.to(values).pow(power).reshape(shape)


@dataclass(frozen=True, eq=False)
class _Held:
    """A tensor that is a weight, or multiples of its rows."""

    name: str
    value: Tensor
    factors: Tensor | None = None
    moved: bool = False


class WeightViews:
    """All weights of a network, and where they lie.

    weights: by name, the tensors that the model computes with. layouts: of all of them.
    """

    def __init__(self, weights: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> None:
        self.layouts = layouts
        self._held: dict[int, list[_Held]] = defaultdict(list)
        self._computed: list[tuple[int, _Held]] = []
        for name, value in weights.items():
            self._held[_place(value)].append(_Held(name, value))

    def names(self, value: Tensor) -> Iterator[str]:
        """The weights in whose memory a tensor lies."""
        for held in self._held.get(_place(value), ()):
            offset = value.storage_offset() - held.value.storage_offset()
            if 0 <= offset < max(1, held.value.numel()):
                yield held.name

    def computed(self, value: Tensor, result: Tensor) -> bool:
        """Let multiples of the rows of a whole weight count as the weight until `forget`; False if they are none."""
        view = self.locate(value)
        if view is None or result.shape != value.shape or view.rows != (0, self.layouts[view.name].matrix[0]):
            return False
        if view.transposed:
            value, result = value.mT, result.mT
        multiple = multiple_of_rows(value, result, self.layouts[view.name].matrix)
        if multiple is None:
            return False
        factors, moved = multiple
        factors = factors if view.factors is None else factors * view.factors
        held = _Held(view.name, result, factors, moved or view.moved)
        self._held[_place(result)].append(held)
        self._computed.append((_place(result), held))
        return True

    def forget(self) -> None:
        """Drop the tensors that were computed from weights, at the end of a batch."""
        for place, held in self._computed:
            self._held[place] = [kept for kept in self._held[place] if kept is not held]
        self._computed.clear()

    def locate(self, value: Any) -> WeightView | None:
        """The rows of the weight that a tensor views; None if it is no view of a weight, or not of whole rows."""
        if not isinstance(value, Tensor):
            return None
        for held in self._held.get(_place(value), ()):
            rows = self._rows_in(held, value)
            if rows is None:
                continue
            start, stop, transposed = rows
            factors = None if held.factors is None else held.factors[start:stop]
            return WeightView(held.name, (start, stop), transposed, factors, held.moved, self._matrix_of(held, value))
        return None

    def _matrix_of(self, held: _Held, value: Tensor) -> int | None:
        """The number of the matrix of a stack that a tensor lies in."""
        layout = self.layouts[held.name]
        if layout.role != STACK or value.ndim == held.value.ndim:
            return None
        return (value.storage_offset() - held.value.storage_offset()) // (layout.matrix[0] * layout.matrix[1])

    def _rows_in(self, held: _Held, value: Tensor) -> tuple[int, int, bool] | None:
        """Which rows of a weight a tensor is, from and to, and whether transposed."""
        weight, layout = held.value, self.layouts[held.name]
        rows, cols = layout.matrix
        offset = value.storage_offset() - weight.storage_offset()
        if offset == 0 and value.shape == weight.shape and value.stride() == weight.stride():
            return 0, rows, False
        turned = value.mT if value.ndim >= 2 and layout.role != KERNEL else value
        if offset == 0 and turned.shape == weight.shape and turned.stride() == weight.stride():
            return 0, rows, True
        if not weight.is_contiguous() or not 0 <= offset < weight.numel() or offset % cols:
            return None
        start = offset // cols % rows
        if value.shape[1:].numel() == cols and value.is_contiguous():
            return start, start + value.shape[0], False
        if value.ndim == 2 and value.shape[0] == cols and value.mT.is_contiguous():
            return start, start + value.shape[1], True
        return None


def _place(value: Tensor) -> int:
    """The memory that a tensor lies in; tensors without any share 0."""
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0
