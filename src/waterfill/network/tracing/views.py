"""Which weight a tensor is a view of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from waterfill.network.layout import Layout


@dataclass(frozen=True)
class Use:
    """Where a tensor lies in a weight: rows start to stop of it or of one matrix of a stack; transposed or not.

    factors: what these rows were multiplied by before they were used, [rows]; None for nothing. moved: whether each row
    was also moved by a number, such as its mean.
    """

    name: str
    rows: tuple[int, int]
    transposed: bool = False
    factors: Tensor | None = field(default=None, compare=False)
    moved: bool = False

    def times(self, values: Tensor, dim: int = 0, power: int = 1) -> Tensor:
        """What goes into the rows, or comes back to them, along `dim`, as it counts for the weight itself."""
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


@dataclass(frozen=True)
class Plan:
    """What to gather. layouts: of all weights. wanted: the names to gather now, and whether whole Gram matrices.
    probes: how often the gradient comes back for each batch."""

    layouts: Mapping[str, Layout]
    wanted: Mapping[str, bool]
    probes: int = 1


def _place(value: Tensor) -> int:
    """The memory that a tensor lies in; tensors without any share 0."""
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0
