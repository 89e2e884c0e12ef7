"""A rule for each call into torch that multiplies with a weight: its inputs, and how its outputs are traced.

A rule makes the call and returns its result, or NotImplemented where the weight is used in a way it does not know.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from waterfill.network.layout import MATRIX
from waterfill.network.tracing import recurrent
from waterfill.network.tracing.einsum import product_of
from waterfill.network.tracing.im2col import geometry_of, squares
from waterfill.network.tracing.recorder import Tracing

_CELLS = {"lstm_cell": "lstm", "gru_cell": "gru", "rnn_tanh_cell": "rnn_tanh", "rnn_relu_cell": "rnn_relu"}
_TOKENS = (torch.int64, torch.int32)

Rule = Callable[[Tracing, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]


def _bind(names: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(names.split(), args, strict=False)) | dict(kwargs)


def _linear(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input weight bias", args, kwargs)
    view = tracing.views.locate(given["weight"])
    if view is None:
        return NotImplemented
    y = func(*args, **kwargs)
    if view.transposed:
        return tracing.recorder.mixture(view, squares(given["input"], -1), y)
    return tracing.recorder.product(view, given["input"], y)


def _product(
    tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], at: int = 0
) -> Any:
    """a @ b, either of them a weight; at: where they stand among the arguments."""
    if len(args) < at + 2:
        return NotImplemented
    a, b = args[at : at + 2]
    view = tracing.views.locate(b)
    if view is not None and a.ndim >= 1:
        y = func(*args, **kwargs)
        return (
            tracing.recorder.product(view, a, y)
            if view.transposed
            else tracing.recorder.mixture(view, squares(a, -1), y)
        )
    view = tracing.views.locate(a)
    if view is None:
        return NotImplemented
    y = func(*args, **kwargs)
    if b.ndim == 1:
        return (
            tracing.recorder.mixture(view, squares(b, -1), y)
            if view.transposed
            else tracing.recorder.product(view, b, y)
        )
    watched = y.mT  # the gradient of a view of y would not be y's
    turned = (
        tracing.recorder.mixture(view, squares(b, -2), watched)
        if view.transposed
        else tracing.recorder.product(view, b.mT, watched)
    )
    return turned.mT


def _einsum(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    equation, *factors = args
    factors = list(factors[0]) if len(factors) == 1 and isinstance(factors[0], list | tuple) else factors
    for at, factor in enumerate(factors):
        view = tracing.views.locate(factor)
        product = None if view is None else product_of(equation, [f.ndim for f in factors], at, view.transposed)
        if view is None or product is None:
            continue
        y = func(*args, **kwargs).permute(product.outputs)
        x = product.inputs_of(factors[1 - at], y.shape)
        y = tracing.recorder.mixture(view, squares(x, -1), y) if product.mixes else tracing.recorder.product(view, x, y)
        return y.permute(product.back)
    return NotImplemented


def _bilinear(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input1 input2 weight bias", args, kwargs)
    view = tracing.views.locate(given["weight"])
    if view is None or tracing.views.layouts[view.name].role != MATRIX:
        return NotImplemented
    pairs = (given["input1"].unsqueeze(-1) * given["input2"].unsqueeze(-2)).flatten(-2)
    return tracing.recorder.product(view, pairs, func(*args, **kwargs))


def _conv(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input weight bias stride padding dilation groups", args, kwargs)
    view = tracing.views.locate(given["weight"])
    if view is None:
        return NotImplemented
    geometry = geometry_of(given["weight"].shape[2:], given)
    return tracing.recorder.convolution(view, given["input"], func(*args, **kwargs), geometry)


def _transposed(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = _bind("input weight bias stride padding output_padding groups dilation", args, kwargs)
    view = tracing.views.locate(given["weight"])
    if view is None:
        return NotImplemented
    geometry = geometry_of(given["weight"].shape[2:], given)
    return tracing.recorder.transposed_convolution(view, given["input"], func(*args, **kwargs), geometry)


def _lookup(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    view = tracing.views.locate(args[0])
    tokens = args[1] if len(args) > 1 else kwargs.get("indices")
    if not isinstance(tokens, torch.Tensor) or tokens.dtype not in _TOKENS:
        return NotImplemented
    if view is None or view.transposed or args[0].ndim != 2:
        return NotImplemented
    return tracing.recorder.lookup(view, tokens, func(*args, **kwargs))


def _bags(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """torch.embedding_bag: each output is a mixture of the rows of its bag (for the largest, taken as their mean)."""
    given = _bind("weight indices offsets scale mode sparse per_sample_weights last", args, kwargs)
    view, tokens, offsets = tracing.views.locate(given["weight"]), given["indices"], given["offsets"]
    if view is None or view.transposed or tokens.ndim != 1:
        return NotImplemented
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(tokens)])])
    sizes = (ends - offsets)[: len(offsets) - bool(given.get("last", False))]
    summed = given.get("mode", 0) == 0
    shares = torch.ones_like(sizes, dtype=torch.float64) if summed else 1 / sizes.clamp_min(1).double()
    squared = shares.repeat_interleave(sizes).square()
    if given.get("per_sample_weights") is not None:
        squared = squared * given["per_sample_weights"].detach().double().square()
    rows = view.rows[1] - view.rows[0]
    energy = torch.bincount(tokens, weights=squared, minlength=rows)
    y, *rest = func(*args, **kwargs)
    return tracing.recorder.mixture(view, energy, y, floor=0.5 * float(squared.mean()) if len(squared) else 0.0), *rest


def _cell(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, state, w_ih, w_hh, b_ih, b_hh = (*args, None, None)[:6]
    states = recurrent.states_of(state)
    with tracing.traced:
        after = recurrent.step(_CELLS[func.__name__], F.linear(x, w_ih, b_ih), F.linear(states[0], w_hh, b_hh), states)
    return after if isinstance(state, tuple | list) else after[0]


def _recurrent(tracing: Tracing, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    call, unpacked = recurrent.call_of(func.__name__, args)
    with torch.no_grad():
        expected = func(*args, **kwargs)
    with tracing.traced:
        data, finals = recurrent.unroll(call)
    results = (unpacked(data), *finals)
    if not all(torch.allclose(a, b, 1e-2, 1e-3) for a, b in zip(results, expected, strict=True)):
        return NotImplemented
    return results


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
