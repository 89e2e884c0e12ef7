"""The form of a layer that is fastest on this machine, for the numbers of inputs that are asked for."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.runtime.leaves import CodesTerm, Term
from waterfill.runtime.measured.machine import machine
from waterfill.runtime.measured.timing import shortest
from waterfill.storage import measured

PACKED, DENSE, BFLOAT16, INT8 = "packed", "dense", "bfloat16", "int8"
FORMS = (PACKED, DENSE, BFLOAT16, INT8)
_TENTHS = 10  # of a bit in memory for each weight: matrices whose storage is so alike take as long


@dataclass(frozen=True)
class Fastest:
    """How a layer's form is chosen by measurement.

    Args:
        batches: inputs at a time, each timed; a form is judged by the product of its times for all of them.
        forms: what is tried: "packed", the compressed weights; "dense", the restored ones; "bfloat16", these
            in half the memory, an error of 0.2 %; "int8", as packed with inputs rounded to 8 bits, an error of 1 %.
            The last two change outputs more than "packed" does, and are tried only where they are named.

    Raises:
        BadInput: no batches, numbers below 1, no forms or unknown ones.

    Example:
        >>> quick = waterfill.pack("net.wf", Net(), batch=runtime.Fastest((1, 32), ("packed", "bfloat16")))
    """

    batches: tuple[int, ...] = (1,)
    forms: tuple[str, ...] = (PACKED, DENSE)

    def __post_init__(self) -> None:
        if not self.batches or not all(type(count) is int and count >= 1 for count in self.batches):
            raise BadInput(f"batches={self.batches!r} are no numbers of inputs; give 1 or more")
        if not self.forms or not set(self.forms) <= set(FORMS):
            raise BadInput(f"forms={self.forms!r}: give some of {', '.join(FORMS)}")

    def chosen(self, term: Term, weight: Tensor) -> tuple[str, str]:
        """The fastest form of a packed matrix, and the times in words.

        weight: of the layer, of which only its type and place count. Times are taken once on a machine and kept
        (`storage.measured`).
        """
        device = torch.device("cpu") if weight.is_meta else weight.device
        times = [self._times(term, count, weight.dtype, device) for count in self.batches]
        best = min(self.forms, key=lambda form: math.fsum(math.log(each[form]) for each in times))
        several = len(times) > 1
        words = [
            ", ".join(f"{1e6 * each[form]:.0f} µs {form}" for form in self.forms)
            + (f" at {count} input{'s' * (count > 1)}" if several else "")
            for count, each in zip(self.batches, times, strict=True)
        ]
        return best, f"{best} is fastest: {'; '.join(words)}" if len(self.forms) > 1 else ""

    def _times(self, term: Term, count: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
        """Seconds by form for so many inputs, as they were measured side by side."""
        key, here = _key(term, count, dtype), machine(str(device))
        known = _checked(measured.recall(here, key))
        if not set(self.forms) <= known.keys():
            x = torch.ones(count, term.cols, dtype=dtype, device=device)
            tried = {form: partial(in_form(term, form, dtype), x) for form in self.forms}
            with torch.inference_mode():
                known = shortest(tried, device)
            measured.remember(here, key, known)
        return known


def _key(term: Term, count: int, dtype: torch.dtype) -> str:
    """What the time depends on beside the machine: shape, storage, inputs."""
    size = sum(value.numel() * value.element_size() for value in term.buffers())
    bits = round(_TENTHS * 8 * size / max(1, term.rows * term.cols)) / _TENTHS
    rounded = {inner.size for inner in term.modules() if isinstance(inner, CodesTerm)}
    words = f"{term.words.partition(',')[0]}, {bits} bits, inputs of {', '.join(map(str, sorted(rounded)))} bytes"
    return f"{term.rows} x {term.cols}, {words}, {count} x {str(dtype).removeprefix('torch.')}"


def _checked(found: Any) -> dict[str, float]:
    """Times that were kept; nothing where they are no times."""
    given = found if isinstance(found, dict) else {}
    return {form: s for form, s in given.items() if form in FORMS and isinstance(s, float) and 0 < s < math.inf}


class CastTerm(Term):
    """A matrix [rows, cols] restored once, in a type of its own; inputs are cast to that."""

    matrix: Tensor
    runs = DENSE

    def __init__(self, matrix: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows, self.cols = matrix.shape
        self._keep(matrix=matrix.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.matrix.dtype), self.matrix).to(x.dtype)

    def restored(self, rows: Tensor | None = None) -> Tensor:
        return (self.matrix if rows is None else self.matrix[rows]).float()

    def block(self, first: int, last: int) -> Tensor:
        return self.matrix[first:last].float()

    @property
    def words(self) -> str:
        return f"{str(self.matrix.dtype).removeprefix('torch.')} weights"


def in_form(term: Term, form: str, dtype: torch.dtype) -> Term:
    """A packed matrix in another form, on its device. dtype: of the layer's weights."""
    if form in (DENSE, BFLOAT16):
        return CastTerm(term.restored(), torch.bfloat16 if form == BFLOAT16 else dtype)
    return term if form == PACKED else _with_inputs(term, 1)


def _with_inputs(term: Term, size: int) -> Term:
    """A term that rounds its inputs to integers of so many bytes, on the same tensors."""
    made = copy.deepcopy(term, {id(value): value for value in term.buffers()})
    for inner in made.modules():
        if isinstance(inner, CodesTerm):
            inner.size = size
    return made
