"""A recipe that ends the process, without a word, at matrices of 65 columns."""

import os
from dataclasses import dataclass

from torch import Tensor

from waterfill.importance import Importance
from waterfill.part import Part, Spec
from waterfill.parts import Dense


@dataclass(frozen=True)
class Poison(Spec):
    """`Dense()` of all other matrices."""

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        if target.shape[1] == 65:
            os._exit(9)
        return Dense().fit(target, importance, price)
