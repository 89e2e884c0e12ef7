"""Recipes for networks that run packed, or in another tool: what of a spec has codes, with those that it holds."""

from dataclasses import fields, replace
from typing import Any

from waterfill.part import Spec
from waterfill.parts.fixed_rate.in_format import InFormat, in_format
from waterfill.parts.quantized import Quantize

PACKED = "packed"
"""The way to run from compressed weights in PyTorch."""


def to_run(spec: Spec, how: str) -> Spec:
    """The spec for networks that run "packed", or from the file of a format. Raises BadRecipe."""
    return packed(spec) if how == PACKED else in_format(spec, how)


def packed(spec: Spec) -> Spec:
    """The spec with `Quantize(packed=True)` for every quantization by price in it; trellises are left out, whose codes
    take a bit more of memory each. Anything else is as it was."""
    if isinstance(spec, Quantize):
        return spec if spec.fixed_rate else Quantize(packed=True)
    changed = {name: _each(value) for name, value in _given(spec).items()}
    return replace(spec, **changed) if changed else spec  # type: ignore[type-var]  # every spec is a dataclass


def counts_memory(spec: Spec) -> bool:
    """Whether a budget counts the bits in memory, or in another format, of what the spec makes, where they are more
    than those in the file."""
    if isinstance(spec, Quantize):
        return spec.packed
    if isinstance(spec, InFormat):
        return True
    return any(counts_memory(one) for value in _given(spec).values() for one in _specs(value))


def _given(spec: Spec) -> dict[str, Any]:
    """The arguments of a spec that are or hold specs, by name."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if _specs(value)}


def _specs(value: Any) -> tuple[Spec, ...]:
    """The specs in an argument."""
    return tuple(one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Spec))


def _each(value: Any) -> Any:
    return tuple(map(packed, value)) if isinstance(value, tuple) else packed(value)
