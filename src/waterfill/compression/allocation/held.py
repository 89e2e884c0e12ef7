"""What packed layers hold of a weight, where a budget counts that."""

from collections.abc import Sequence

from waterfill.network.layout import Layout
from waterfill.part import Part, Spec
from waterfill.part.memory import bytes_at, bytes_of
from waterfill.parts import counts_memory


def held(parts: Sequence[Part], spec: Spec) -> int:
    """Bytes in memory of the parts that a spec made; 0 where a budget counts only the file."""
    return sum(bytes_of(part.product()) for part in parts) if counts_memory(spec) else 0


def held_in_all(parts: Sequence[Part], spec: Spec, layout: Layout) -> float:
    """Bits in memory of a whole tensor, by the parts of its sample; 0 where a budget counts only the file."""
    if not counts_memory(spec):
        return 0.0
    return 8.0 * layout.count * sum(bytes_at(part.product(), layout.matrix) for part in parts) / max(1, len(parts))
