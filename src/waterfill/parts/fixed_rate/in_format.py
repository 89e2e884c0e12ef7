"""Codes in the forms that a file format of another tool has: of these the one that is cheapest at the price."""

from collections.abc import MutableMapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.part import Choice, Part, Spec
from waterfill.part.formats import FORMATS, Form
from waterfill.parts.dense import Dense
from waterfill.parts.fixed_rate.grouped import FixedRate, fit_grouped
from waterfill.parts.quantized import Quantize

_ENTRIES_TRIED, _ROWS_TRIED = 1 << 16, 64  # on which the form is found
_KNOWN: MutableMapping[Tensor, tuple[Importance, dict[Form, float]]] = WeakTensorKeyDictionary()
"""By target what the forms lose, and the importance by which they do."""
_ALONE = Dense(format="float16")
"""Of matrices that no form fits."""


@dataclass(frozen=True)
class InFormat(Spec):
    """Codes of a fixed rate, as wide and in groups as large as a file format has them and as the price allows.

    What a form costs are its bytes in that format, not those of the entropy-coded file. A matrix that no form fits is
    kept in float16.

    Args:
        format: "onnx", "openvino", "gguf" or "compressed-tensors".
        kernels: whether the matrix is that of a convolution, which formats hold otherwise; `compress` knows it.

    Raises:
        BadRecipe: another format.

    Example:
        >>> part = InFormat(format="gguf").fit(weight, Importance(), price=1e-6)
    """

    format: str = "onnx"
    kernels: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BadRecipe(f"InFormat(format={self.format!r}): budgets know the formats {', '.join(FORMATS)}")

    def __repr__(self) -> str:
        return f"InFormat(format={self.format!r}{', kernels=True' if self.kernels else ''})"

    def fit(self, target: Tensor, importance: Importance, price: float, start: Part | None = None) -> Part:
        importance.check(target.shape[0], target.shape[1])
        target, importance = target.cpu(), importance.cpu()
        rows, cols = target.shape
        forms = FORMATS[self.format].forms(cols, self.kernels) if rows else []
        if not forms:
            return _ALONE.fit(target, importance, price)
        form = forms[0] if len(forms) == 1 else self._cheapest(forms, target, importance, price)
        return fit_grouped(target, importance, _rate(form, cols))

    def _cheapest(self, forms: list[Form], target: Tensor, importance: Importance, price: float) -> Form:
        """The form of least D + price * bits, by some of the rows."""
        shape, format = (target.shape[0], target.shape[1]), FORMATS[self.format]
        losses = self._losses(forms, target, importance)

        def cost(form: Form) -> float:
            return losses[form] + 8 * price * format.codes_bytes(form, shape, self.kernels)

        return min(forms, key=cost)

    def _losses(self, forms: list[Form], target: Tensor, importance: Importance) -> dict[Form, float]:
        """D by form, which no price changes: kept while the target is, as curves ask for it again and again."""
        known = _KNOWN.get(target)
        if known is not None and known[0] is importance and known[1].keys() == set(forms):
            return known[1]
        every = max(1, len(target) // max(_ENTRIES_TRIED // target.shape[1], _ROWS_TRIED))
        some, share = target[::every], importance.select_rows(slice(None, None, every))
        factor = len(target) / len(some)
        fits = {form: fit_grouped(some, share, _rate(form, target.shape[1])) for form in forms}
        losses = {form: factor * share.expected(some - part.dense()) for form, part in fits.items()}
        _KNOWN[target] = importance, losses
        return losses


def _rate(form: Form, cols: int) -> FixedRate:
    return FixedRate(form.bits, form.group or cols, form.symmetric)


def in_format(spec: Spec, name: str) -> Spec:
    """The spec with codes of a format for every quantization by price; fixed rates and dense values stay as they are.

    Raises BadRecipe for what is neither.
    """
    if isinstance(spec, Quantize):
        return spec if spec.fixed_rate else InFormat(name)
    if isinstance(spec, Choice):
        return Choice(tuple(dict.fromkeys(in_format(term, name) for term in spec.terms)))
    if isinstance(spec, (InFormat, Dense)):
        return spec
    raise BadRecipe(
        f"{spec!r} has no bits to choose of those that {name} has: with a budget in its file give Quantize(), or no "
        "recipe; what else it holds is exported without such a budget (docs/exports.md)"
    )


def for_kernels(spec: Spec) -> Spec:
    """The spec for the matrix of a convolution."""
    return replace(spec, kernels=True) if isinstance(spec, InFormat) else spec


def format_of(spec: Spec) -> str:
    """The name of the format whose bytes a budget counts with a spec; empty for none."""
    if isinstance(spec, InFormat):
        return spec.format
    values: list[Any] = [getattr(spec, field.name) for field in fields(spec)]  # type: ignore[arg-type]  # a dataclass
    inner = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
    return next((name for one in inner if isinstance(one, Spec) and (name := format_of(one))), "")
