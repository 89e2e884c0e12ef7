"""How a convolution lies over its inputs, and convolutions with weights of which a block is restored at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from waterfill.runtime.blocked.product import ENTRIES

Rows = Callable[[int, int], Tensor]
"""Restores rows from a first one up to before a last one: [rows, cols] (float32)."""
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Geometry:
    """kernel: its extent in each dimension; stride, padding, dilation, groups: as of PyTorch's convolutions."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: "tuple[int, ...] | str"
    dilation: tuple[int, ...]
    groups: int

    @property
    def without_padding(self) -> "Geometry":
        """The same over inputs that are padded already."""
        return replace(self, padding=(0,) * len(self.kernel))

    @property
    def pointwise(self) -> "Geometry":
        """That of a 1 x 1 convolution of all channels."""
        ones, dims = (1,) * len(self.kernel), len(self.kernel)
        return Geometry(ones, ones, (0,) * dims, ones, 1)

    @property
    def is_product(self) -> bool:
        """Whether every output is the product of a matrix with the channels of one position."""
        return replace(self, padding=self.pointwise.padding if self.padding == "valid" else self.padding) == (
            self.pointwise
        )

    def convolved(self, x: Tensor, shape: tuple[int, int], rows: Rows, bias: Tensor | None) -> Tensor:
        """x [batch, in, ...] with a weight [out, in / groups * kernel] of `shape`, a block of outputs at a time."""
        out, cols = shape
        run, dtype, made = _CONVOLUTIONS[len(self.kernel) - 1], x.dtype, []
        if out * cols <= ENTRIES:
            weight = rows(0, out).to(dtype).view(out, -1, *self.kernel)
            added = None if bias is None else bias.to(dtype)
            return run(x, weight, added, self.stride, self.padding, self.dilation, self.groups)
        per, given = out // self.groups, x.shape[1] // self.groups
        for first, last in self._blocks(out, cols):
            low, high = first // per, -(-last // per)
            weight = rows(first, last).to(dtype).view(last - first, -1, *self.kernel)
            own = x if high - low == self.groups else x[:, low * given : high * given]
            added = None if bias is None else bias[first:last].to(dtype)
            made.append(run(own, weight, added, self.stride, self.padding, self.dilation, high - low))
        return torch.cat(made, 1)

    def spread(
        self, x: Tensor, shape: tuple[int, int], rows: Rows, last_of: tuple[Tensor | None, tuple[int, ...]]
    ) -> Tensor:
        """The transposed convolution of x [batch, in, ...] with a weight [in, out / groups * kernel] of `shape`, a
        block of inputs at a time. last_of: the bias, and the padding of the outputs."""
        inputs, cols = shape
        (bias, around), run = last_of, _TRANSPOSED[len(self.kernel) - 1]
        per, dtype = inputs // self.groups, x.dtype
        made: dict[tuple[int, int], Tensor] = {}  # by the groups of a block
        for first, last in self._blocks(inputs, cols):
            span = first // per, -(-last // per)
            weight = rows(first, last).to(dtype).view(last - first, -1, *self.kernel)
            own = x if last - first == inputs else x[:, first:last]
            each = weight.shape[1]
            added = None if bias is None or span in made else bias[span[0] * each : span[1] * each].to(dtype)
            assert not isinstance(self.padding, str)  # which transposed convolutions do not know
            found = run(own, weight, added, self.stride, self.padding, around, span[1] - span[0], self.dilation)
            made[span] = made[span] + found if span in made else found
        return next(iter(made.values())) if len(made) == 1 else torch.cat(list(made.values()), 1)

    def _blocks(self, rows: int, cols: int) -> Iterator[tuple[int, int]]:
        """Rows to be restored at a time: of whole groups where these are small, else of one group."""
        per, each = rows // self.groups, max(1, ENTRIES // max(1, cols))
        if each >= per:
            each = each // per * per
            yield from ((first, min(first + each, rows)) for first in range(0, rows, each))
            return
        for group in range(0, rows, per):
            yield from ((first, min(first + each, group + per)) for first in range(group, group + per, each))
