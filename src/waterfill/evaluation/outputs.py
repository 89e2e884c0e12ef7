"""Distance of a compressed network's outputs from those of the original, to choose the better of two attempts."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from waterfill.errors import BadInput
from waterfill.evaluation.divergence import distance
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.batches import few_enough, spread
from waterfill.network.running.forward import Forward, as_deployed, call, copy_of

_BATCHES_COMPARED = 32
_ENTRIES_COMPARED = 1 << 26  # of outputs


class ReferenceOutputs:
    """The outputs of a network on some of its inputs. The network is not changed."""

    def __init__(self, model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> None:
        self._model = copy_of(model)
        self._forward = forward
        batches = list(spread(batches, _BATCHES_COMPARED))
        with self._settled():
            first = call(self._model, batches[0], self._forward)
            self._batches = few_enough(batches, first, _ENTRIES_COMPARED)
            self._reference = [call(self._model, batch, self._forward).clone() for batch in self._batches]

    def error(self, compressed: CompressedModel) -> float:
        """The distance of its outputs from these, mean of the batches; infinite where they are not finite."""
        try:
            compressed.install(self._model)
            with self._settled():
                pairs = zip(self._batches, self._reference, strict=True)
                distances = [distance(call(self._model, batch, self._forward), known) for batch, known in pairs]
        except BadInput:
            return math.inf
        total = sum(distances) / len(distances)
        return math.inf if math.isnan(total) else total

    @contextmanager
    def _settled(self) -> Iterator[None]:
        with as_deployed(self._model), torch.no_grad():
            yield
