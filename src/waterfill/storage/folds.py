"""Which norms were folded into which layers, in a few bytes, so that the original's tensors can be folded alike."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from waterfill.errors import CorruptFile

STATISTICS = "running_var"
"""The name of a tensor that only batch norms hold."""


@dataclass(frozen=True)
class Fold:
    """The names of a norm and of the layer that it is folded into. eps: added to the variance of the norm. transposed:
    whether output channels are the second dimension of the layer's weight."""

    norm: str
    layer: str
    eps: float
    transposed: bool = False


def pack(folds: Iterable[Fold], names: Iterable[str]) -> dict[str, Any] | bool:
    """For the notes of a file with tensors of these names, in its order; False for none.

    back: for each norm in order, how many modules before it the layer stands, or 0 if it is not folded. Mostly that is
    1, which takes hardly any bytes. eps: of the folded norms, one where all have the same.
    """
    modules, norms = _modules(names)
    of = {fold.norm: fold for fold in folds}
    own = [of[norm] for norm in norms if norm in of]
    if not own:
        return False
    eps = [fold.eps for fold in own]
    packed: dict[str, Any] = {
        "back": [modules[norm] - modules[of[norm].layer] if norm in of else 0 for norm in norms],
        "eps": eps[:1] if len(set(eps)) == 1 else eps,
    }
    turned = [number for number, fold in enumerate(own) if fold.transposed]
    return packed | ({"transposed": turned} if turned else {})


def unpack(packed: Any, names: Iterable[str]) -> list[Fold] | None:
    """The inverse of `pack`; None where a file says that norms are folded, but not which. Raises CorruptFile."""
    if packed is True:
        return None
    if not packed:
        return []
    match packed:
        case {"back": list(back), "eps": list(eps)} if eps and all(type(step) is int for step in back):
            turned = packed.get("transposed", [])
            folds = _folds(back, eps, turned if isinstance(turned, list) else [], names)
            if folds is not None:
                return folds
    raise CorruptFile("what the file says of folded norms is not what a writer would have written; it is damaged")


def _folds(back: list[int], eps: list[Any], turned: list[Any], names: Iterable[str]) -> list[Fold] | None:
    modules, norms = _modules(names)
    order = list(modules)
    steps = [(norm, step) for norm, step in zip(norms, back, strict=False) if step]
    whole = len(back) == len(norms) and len(eps) in (1, len(steps))
    if not whole or not all(type(e) is float and 0 <= e < math.inf for e in eps):
        return None
    places = [modules[norm] - step for norm, step in steps]
    if not all(0 <= place < len(order) for place in places):
        return None
    every = eps * len(steps) if len(eps) == 1 else eps
    return [
        Fold(norm, order[place], every[number], number in turned)
        for number, ((norm, _), place) in enumerate(zip(steps, places, strict=True))
    ]


def _modules(names: Iterable[str]) -> tuple[dict[str, int], Sequence[str]]:
    """The modules that hold these tensors, numbered in order, and which of them are norms with statistics."""
    pairs = [name.rpartition(".") for name in names]
    modules = {module: number for number, module in enumerate(dict.fromkeys(module for module, _, _ in pairs))}
    return modules, list(dict.fromkeys(module for module, _, own in pairs if own == STATISTICS))
