"""One token through a layer of a decoder like Llama's, by two calls of the compiled core.

At one token a product with a packed matrix takes microseconds, and what PyTorch does between products, operator by
operator, takes longer than all of them. Here norm, rotation, attention and activation run where the products run; the
cache of keys and values stays that of transformers. Products are those of the layers themselves, to the bit; all else
is float32, whatever the type of the network, and differs from PyTorch's in the last bits.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from waterfill.coding import native
from waterfill.runtime.layers.linear import PackedLinear
from waterfill.runtime.matrix import runs_here

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_CACHE, _ATTENTION = "DynamicCache", ("sdpa", "eager")
_NORMS, _SILU = ("input_layernorm", "post_attention_layernorm"), ("SiLU", "SiLUActivation")
_INPUTS, _OUTPUTS = ("q_proj", "k_proj", "v_proj"), ("o_proj", "gate_proj", "up_proj", "down_proj")


def through(layer: nn.Module, x: Tensor, given: Mapping[str, Any]) -> Tensor | None:
    """The output [1, 1, width] of a layer for one token x [1, 1, width], as its forward pass would give it; None where
    that is to run itself: for more tokens, masks, other caches, and where hooks look on."""
    cache, angles = given.get("cache", given.get("past_key_values")), given.get("position_embeddings")
    if (
        not runs_here(x)  # which a compiler must meet first
        or (x.requires_grad and torch.is_grad_enabled())
        or x.shape[:-1] != (1, 1)
        or given.get("attention_mask") is not None
        or type(cache).__name__ != _CACHE
        or angles is None
        or layer.training
        or torch.is_autocast_enabled("cpu")
        or native.core is None
    ):
        return None
    found = _Layer.of(layer) if x.dtype in _TYPES else None
    if found is None:
        return None
    known = x.shape[-1] == len(found.weights[0]) and angles[0].shape == (1, 1, found.attention.head_dim)
    return found.run(x, cache, angles) if known else None


class _Layer(NamedTuple):
    """What the core is to know of a layer: the weights of its norms and what is added to their variances, the matrices
    of `_INPUTS` and `_OUTPUTS` as records, and their biases."""

    attention: Any
    weights: list[Any]
    eps: list[float]
    records: list[Any]
    biases: list[Any]

    @classmethod
    def of(cls, layer: nn.Module) -> "_Layer | None":
        """None where its forward pass is to run."""
        attention: Any = layer._modules["self_attn"]  # found at once, unlike attributes
        inner: Any = layer._modules["mlp"]
        norms = [layer._modules[name] for name in _NORMS]
        linears = attention._modules | inner._modules
        packed = [linears[name] for name in (*_INPUTS, *_OUTPUTS)]
        if attention.config._attn_implementation not in _ATTENTION:
            return None
        if _watched(chain((attention, inner, *norms), linears.values())):
            return None
        records = [_records(one) for one in packed]
        biases = [None if one is None else one._parameters["bias"] for one in packed]
        weights = [None if one is None else one._parameters["weight"] for one in norms]
        if None in records or not all(one is not None and one.is_cpu for one in weights):
            return None
        eps = [one.variance_epsilon for one in norms]  # type: ignore[union-attr]
        return cls(attention, weights, eps, records, biases)  # type: ignore[arg-type]

    def run(self, x: Tensor, cache: Any, angles: tuple[Tensor, Tensor]) -> Tensor:
        """The output for a token, whose keys and values the cache takes. angles: cosines and sines [1, 1, head]."""
        core, threads, count = native.core, torch.get_num_threads(), len(_INPUTS)
        assert core is not None
        own, first, second, *turns = map(_plain, (x, *self.weights, *angles))
        biases = [None if bias is None else _plain(bias) for bias in self.biases]
        added = [0 if bias is None else bias.data_ptr() for bias in biases]
        width, head = x.shape[-1], angles[0].shape[-1]
        heads = [records[0][1][0] // head for records in self.records[:count]]
        made = [torch.empty(1, many, 1, head, dtype=torch.float32, device="cpu") for many in heads]
        places = [each.data_ptr() for each in (own, first, *turns, *made)]
        core.decoder_inputs(places, added[:count], self.records[:count], [width, head], self.eps[0], threads)
        fresh = [each.to(x.dtype) for each in made[1:]]
        keys, values = map(_plain, cache.update(*fresh, self.attention.layer_idx))
        out = torch.empty_like(own)
        places = [each.data_ptr() for each in (own, made[0], keys, values, second, out)]
        sizes = [width, *heads[:2], head, *keys.shape[2:3]]
        core.decoder_outputs(
            places, added[count:], self.records[count:], sizes, self.eps[1], self.attention.scaling, threads
        )
        return out.to(x.dtype)


def _records(linear: nn.Module | None) -> Any:
    """The matrices of a packed layer for the core; None where that does not multiply them."""
    if type(linear) is not PackedLinear:
        return None
    term = linear._modules["term"]
    assert term is not None
    return None if term._forward_hooks or term.large == 1 else term.records()  # type: ignore[operator]


def _watched(modules: Iterable[nn.Module | None]) -> bool:
    """Whether a hook is to see what a module is given or gives."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(one is not None and (one._forward_hooks or one._forward_pre_hooks) for one in modules)


def _plain(value: Tensor) -> Tensor:
    """The same as the core reads it: contiguous float32."""
    return (value if value.dtype is torch.float32 else value.float()).contiguous()


def fits(layer: nn.Module) -> bool:
    """Whether a layer is, for its matrices and its kind, one that `through` can run."""
    attention, inner = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or inner is None or getattr(attention.config, "sliding_window", None) is not None:
        return False
    linears = attention._modules | inner._modules
    if not all(_records(linears.get(name)) for name in (*_INPUTS, *_OUTPUTS)):
        return False
    q, k, v, o, gate, up, down = (linears[name] for name in (*_INPUTS, *_OUTPUTS))
    width, head = layer.input_layernorm.weight.shape[0], attention.head_dim  # type: ignore[union-attr, index]
    return (
        type(inner.act_fn).__name__ in _SILU
        and head % 2 == 0
        and {one.in_features for one in (q, k, v, gate, up)} == {width}
        and {one.out_features for one in (o, down)} == {width}
        and k.out_features == v.out_features
        and q.out_features % k.out_features == 0 == k.out_features % head
        and o.in_features == q.out_features
        and gate.out_features == up.out_features == down.in_features
        and math.isfinite(attention.scaling)
    )
