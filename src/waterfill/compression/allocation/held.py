"""What packed layers, or the file of another tool, hold of a weight, where a budget counts that."""

from collections.abc import Mapping, Sequence

from waterfill.network.layout import RAW, VECTOR, Layout, real_of
from waterfill.part import Part, Spec
from waterfill.part.formats import FORMATS
from waterfill.part.memory import bytes_at, bytes_of
from waterfill.parts import Quantize, counts_memory, format_of
from waterfill.storage.manifest import KERNEL

_VLLM = "compressed-tensors"
_TABLES = ("embed", "wte", "wpe", "shared", "lm_head")  # parts of the names of what it holds dense
_FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # of layers that it puts together, of one form each
_ONE_FORM = Quantize(bits=4, group=32)


def format_in(specs: Mapping[str, Spec | None]) -> str:
    """The format whose bytes a budget counts with these specs by name; empty for none."""
    return next((name for spec in specs.values() if spec is not None and (name := format_of(spec))), "")


def as_held(specs: Mapping[str, Spec | None]) -> dict[str, Spec | None]:
    """The specs by name, None to keep every bit, with what a format holds in one way alone."""
    if format_in(specs) != _VLLM:
        return dict(specs)
    chosen: dict[str, Spec | None] = {}
    for name, spec in specs.items():
        free = spec is not None and bool(format_of(spec))
        table, fused = (any(word in name for word in words) for words in (_TABLES, _FUSED))
        chosen[name] = (None if table else _ONE_FORM if fused else spec) if free else spec
    return chosen


def held(parts: Sequence[Part], spec: Spec, layout: Layout, format: str = "") -> int:
    """Bytes in memory of the parts that a spec made, or in a file of a format; 0 where a budget counts only its own."""
    if format:
        return _in_format(parts, layout, format)
    return sum(bytes_of(part.product()) for part in parts) if counts_memory(spec) else 0


def held_in_all(parts: Sequence[Part], spec: Spec, layout: Layout, format: str = "") -> float:
    """Bits as of `held` of a whole tensor, by the parts of its sample; 0 where a budget counts only its own file."""
    if format:
        return 8.0 * _in_format(parts, layout, format)
    if not counts_memory(spec):
        return 0.0
    return 8.0 * layout.count * sum(bytes_at(part.product(), layout.matrix) for part in parts) / max(1, len(parts))


def _in_format(parts: Sequence[Part], layout: Layout, name: str) -> int:
    """Bytes of a tensor in a file, by its parts or those of its sample, all of a kind."""
    format, itemsize = FORMATS[name], real_of(layout.dtype).itemsize
    if layout.role == RAW and not layout.dtype.is_floating_point:
        return layout.entries * layout.dtype.itemsize + format.named
    if layout.role in (VECTOR, RAW) or not parts:
        matrix = layout.role == RAW and len(layout.shape) > 1
        return format.dense_bytes(layout.numbers, itemsize, matrix)
    kernel, shape = layout.role == KERNEL, layout.matrix
    whole = sum(format.bytes_of(part.product(), shape, kernel, itemsize) for part in parts)
    return -(-whole * layout.count // len(parts))
