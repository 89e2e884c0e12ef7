"""Products of a weight in the notation of einsum, as x W^T, which multiplies rows, or x W, which mixes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

from torch import Tensor


@dataclass(frozen=True)
class Contraction:
    """An order of dimensions in which the last of x is contracted with the weight, and the last of y comes from it.

    inputs: of x, one for each of y; None for one that x lacks and is repeated along (the experts of a stack).
    outputs: of y. mixes: the rows of the weight, one for each of the last of x, are mixed, not multiplied.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    mixes: bool

    @property
    def back(self) -> tuple[int, ...]:
        """The order that y had."""
        return tuple(self.outputs.index(i) for i in range(len(self.outputs)))

    def inputs_of(self, x: Tensor, outputs: Sequence[int]) -> Tensor:
        """x in this order. outputs: the shape of y in its order."""
        x = x.permute([i for i in self.inputs if i is not None])
        for at, i in enumerate(self.inputs):
            x = x if i is not None else x.unsqueeze(at)
        return x.expand(*outputs[:-1], x.shape[-1])


def product_of(equation: str, dims: Sequence[int], at: int, transposed: bool) -> Contraction | None:
    """The product that an equation of two factors stands for; None where it is another one, such as a sum over experts.

    dims: of the factors. at: which of them is the weight, a matrix [rows, cols] or a stack of them, or transposed.
    """
    letters = _letters(equation, dims)
    if letters is None or len(dims) != 2 or dims[at] not in (2, 3):
        return None
    weight, x, y = letters[at], letters[1 - at], letters[2]
    stack, rows, cols = weight[:-2], *(weight[:-3:-1] if transposed else weight[-2:])
    mixes = rows in x and rows not in y
    contracted, produced = (rows, cols) if mixes else (cols, rows)
    rest = y.replace(produced, "")
    repeated = set(rest) - set(x)
    fits = contracted in x and contracted not in y and produced in y and produced not in x
    if not fits or set(x) - {contracted} - set(rest) or not repeated <= set(stack) <= set(rest):
        return None
    inputs = [None if letter in repeated else x.index(letter) for letter in rest]
    return Contraction((*inputs, x.index(contracted)), tuple(map(y.index, rest + produced)), mixes)


def _letters(equation: str, dims: Sequence[int]) -> list[str] | None:
    """The letters of every factor and of the result, dots written out; None where letters repeat in one of them."""
    factors, arrow, result = equation.replace(" ", "").partition("->")
    terms = factors.split(",")
    if len(terms) != len(dims) or not arrow:
        return None
    unused = [letter for letter in ascii_letters if letter not in equation]
    dots = {n - len(term) + 3 for n, term in zip(dims, terms, strict=True) if "..." in term}
    if len(dots) > 1:  # they are aligned at the end
        return None
    terms = [term.replace("...", "".join(unused[: max(dots, default=0)])) for term in (*terms, result)]
    return terms if all(len(set(term)) == len(term) for term in terms) else None
