"""The interface of a recorder of products with weights, to which the tracer reports."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from waterfill.network.tracing.im2col import Geometry
from waterfill.network.tracing.views import WeightView, WeightViews


class Recorder(ABC):
    """Receives products with weights W [rows, cols] as they are computed; each method returns the output to go on with.

    x: inputs. y: the outputs they give.
    """

    @abstractmethod
    def product(self, view: WeightView, x: Tensor, y: Tensor) -> Tensor:
        """y [..., rows] = x [..., cols] W^T: columns are inputs."""

    @abstractmethod
    def mixture(self, view: WeightView, energy: Tensor, y: Tensor, floor: float = 0.0) -> Tensor:
        """y [..., cols] = x [..., rows] W: columns are outputs.

        energy: sums of squares of x, [rows]. floor: the least energy to assume of a row.
        """

    @abstractmethod
    def convolution(self, view: WeightView, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """A convolution: as many products as it has groups, their columns the windows of the inputs."""

    @abstractmethod
    def transposed_convolution(self, view: WeightView, x: Tensor, y: Tensor, geometry: Geometry) -> Tensor:
        """A transposed convolution: its columns are the windows of the outputs."""

    @abstractmethod
    def lookup(self, view: WeightView, tokens: Tensor, y: Tensor) -> Tensor:
        """Rows of a weight by their number: a mixture of one."""


@dataclass(frozen=True)
class Tracing:
    """The context of an operation's rule.

    views: finds the weight that a tensor is. recorder: receives products. traced: the block in which calls are traced,
    for rules that replace one call by several.
    """

    views: WeightViews
    recorder: Recorder
    traced: AbstractContextManager[Any]
