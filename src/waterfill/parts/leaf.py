"""What a container's inner matrices are made of when its spec does not say."""

from waterfill.part import Spec
from waterfill.parts.quantized import Quantize


def leaf(chosen: Spec | None) -> Spec:
    """`chosen`, or else the kind that is cheapest for most matrices. The only place where a kind knows another."""
    return Quantize() if chosen is None else chosen
