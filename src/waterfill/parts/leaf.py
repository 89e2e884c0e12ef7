"""The default spec of the matrices inside sparse and low-rank parts: the only place where a kind knows another."""

from waterfill.errors import BadRecipe
from waterfill.part import Spec
from waterfill.parts.quantized import Quantize


def leaf(chosen: Spec | None) -> Spec:
    """`chosen`, or `Quantize()`, which is cheapest for most matrices."""
    return Quantize() if chosen is None else chosen


def check_leaf(argument: str, chosen: object) -> None:
    """Raise BadRecipe unless `chosen` is a spec or None."""
    if chosen is not None and not isinstance(chosen, Spec):
        raise BadRecipe(f"{argument}={chosen!r} is not a spec; write for example {argument}=Codebook(levels=16)")
