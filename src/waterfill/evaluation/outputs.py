"""Distance of a compressed network's outputs from those of the original, to choose the better of two attempts."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.evaluation.divergence import distance
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.batches import spread
from waterfill.network.running.forward import Forward, as_deployed, call, copy_of

_BATCHES_COMPARED = 32


class ReferenceOutputs:
    """The outputs of a network on some of its inputs. The network is not changed."""

    def __init__(self, model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> None:
        self._model = copy_of(model)
        self._forward = forward
        self._batches = list(spread(batches, _BATCHES_COMPARED))
        self._reference = self._outputs()

    def error(self, compressed: CompressedModel) -> float:
        """The distance of its outputs from these, mean of the batches; infinite where they are not finite."""
        try:
            compressed.install(self._model)
            outputs = self._outputs()
        except BadInput:
            return math.inf
        total = sum(map(distance, outputs, self._reference)) / len(outputs)
        return math.inf if math.isnan(total) else total

    def _outputs(self) -> list[Tensor]:
        with as_deployed(self._model), torch.no_grad():
            return [call(self._model, batch, self._forward).clone() for batch in self._batches]
