"""One rule for each call into torch that multiplies with a weight: what are its inputs, and how its outputs are seen.

A rule makes the call and returns its result, or NotImplemented where the weight is used in a way it does not know.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from waterfill.calibration.recorder import Uses
from waterfill.network.layout import MATRIX
from waterfill.network.tracing import recurrent
from waterfill.network.tracing.einsum import product_of
from waterfill.network.tracing.im2col import geometry_of, squares

_CELLS = {"lstm_cell": "lstm", "gru_cell": "gru", "rnn_tanh_cell": "rnn_tanh", "rnn_relu_cell": "rnn_relu"}
_TOKENS = (torch.int64, torch.int32)

Rule = Callable[[Uses, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]


def _bind(names: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(names.split(), args, strict=False)) | dict(kwargs)


def _linear(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input weight bias", args, kwargs)
    use = uses.locate(given["weight"])
    if use is None:
        return NotImplemented
    y = func(*args, **kwargs)
    if use.transposed:
        return uses.mixed(use, squares(given["input"], -1), y)
    return uses.scaled(use, given["input"], y)


def _product(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], at: int = 0) -> Any:
    """a @ b, either of them a weight; at: where they stand among the arguments."""
    if len(args) < at + 2:
        return NotImplemented
    a, b = args[at : at + 2]
    use = uses.locate(b)
    if use is not None and a.ndim >= 1:
        y = func(*args, **kwargs)
        return uses.scaled(use, a, y) if use.transposed else uses.mixed(use, squares(a, -1), y)
    use = uses.locate(a)
    if use is None:
        return NotImplemented
    y = func(*args, **kwargs)
    if b.ndim == 1:
        return uses.mixed(use, squares(b, -1), y) if use.transposed else uses.scaled(use, b, y)
    seen = y.mT  # the gradient of a view of y would not be y's
    turned = uses.mixed(use, squares(b, -2), seen) if use.transposed else uses.scaled(use, b.mT, seen)
    return turned.mT


def _einsum(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    equation, *factors = args
    factors = list(factors[0]) if len(factors) == 1 and isinstance(factors[0], list | tuple) else factors
    for at, factor in enumerate(factors):
        use = uses.locate(factor)
        product = None if use is None else product_of(equation, [f.ndim for f in factors], at, use.transposed)
        if use is None or product is None:
            continue
        y = func(*args, **kwargs).permute(product.outputs)
        x = product.inputs_of(factors[1 - at], y.shape)
        y = uses.mixed(use, squares(x, -1), y) if product.mixes else uses.scaled(use, x, y)
        return y.permute(product.back)
    return NotImplemented


def _bilinear(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input1 input2 weight bias", args, kwargs)
    use = uses.locate(given["weight"])
    if use is None or uses.plan.layouts[use.name].role != MATRIX:
        return NotImplemented
    pairs = (given["input1"].unsqueeze(-1) * given["input2"].unsqueeze(-2)).flatten(-2)
    return uses.scaled(use, pairs, func(*args, **kwargs))


def _conv(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input weight bias stride padding dilation groups", args, kwargs)
    use = uses.locate(given["weight"])
    if use is None:
        return NotImplemented
    geometry = geometry_of(given["weight"].shape[2:], given)
    return uses.convolved(use, given["input"], func(*args, **kwargs), geometry)


def _transposed(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input weight bias stride padding output_padding groups dilation", args, kwargs)
    use = uses.locate(given["weight"])
    if use is None:
        return NotImplemented
    geometry = geometry_of(given["weight"].shape[2:], given)
    return uses.spread(use, given["input"], func(*args, **kwargs), geometry)


def _lookup(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    use = uses.locate(args[0])
    tokens = args[1] if len(args) > 1 else kwargs.get("indices")
    if not isinstance(tokens, torch.Tensor) or tokens.dtype not in _TOKENS:
        return NotImplemented
    if use is None or use.transposed or args[0].ndim != 2:
        return NotImplemented
    return uses.picked(use, tokens, func(*args, **kwargs))


def _bags(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """torch.embedding_bag: each output is a mixture of the rows of its bag (for the largest, taken as their mean)."""
    given = _bind("weight indices offsets scale mode sparse per_sample_weights last", args, kwargs)
    use, tokens, offsets = uses.locate(given["weight"]), given["indices"], given["offsets"]
    if use is None or use.transposed or tokens.ndim != 1:
        return NotImplemented
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(tokens)])])
    sizes = (ends - offsets)[: len(offsets) - bool(given.get("last", False))]
    summed = given.get("mode", 0) == 0
    shares = torch.ones_like(sizes, dtype=torch.float64) if summed else 1 / sizes.clamp_min(1).double()
    squared = shares.repeat_interleave(sizes).square()
    if given.get("per_sample_weights") is not None:
        squared = squared * given["per_sample_weights"].detach().double().square()
    rows = use.rows[1] - use.rows[0]
    energy = torch.bincount(tokens, weights=squared, minlength=rows)
    y, *rest = func(*args, **kwargs)
    return uses.mixed(use, energy, y, floor=0.5 * float(squared.mean()) if len(squared) else 0.0), *rest


def _cell(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, state, w_ih, w_hh, b_ih, b_hh = (*args, None, None)[:6]
    states = recurrent.states_of(state)
    with uses.seeing:
        after = recurrent.step(_CELLS[func.__name__], F.linear(x, w_ih, b_ih), F.linear(states[0], w_hh, b_hh), states)
    return after if isinstance(state, tuple | list) else after[0]


def _recurrent(uses: Uses, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    call, unpacked = recurrent.call_of(func.__name__, args)
    with torch.no_grad():
        expected = func(*args, **kwargs)
    with uses.seeing:
        data, finals = recurrent.unroll(call)
    found = (unpacked(data), *finals)
    if not all(torch.allclose(a, b, 1e-2, 1e-3) for a, b in zip(found, expected, strict=True)):
        return NotImplemented
    return found


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "__matmul__"), _product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), partial(_product, at=1)),
    **dict.fromkeys(("embedding", "__getitem__"), _lookup),
    **dict.fromkeys(_CELLS, _cell),
    **dict.fromkeys(recurrent.MODES, _recurrent),
    "linear": _linear,
    "bilinear": _bilinear,
    "einsum": _einsum,
    "embedding_bag": _bags,
}
