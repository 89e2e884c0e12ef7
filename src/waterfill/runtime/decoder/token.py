"""One token through a layer of a decoder like Llama's, by two calls of the compiled core.

At one token a product with a packed matrix takes microseconds, and what PyTorch does between products, operator by
operator, takes longer than all of them. Here norm, rotation, attention and activation run where the products run; the
cache of keys and values stays that of transformers. Products are those of the layers themselves, to the bit; all else
is float32, whatever the type of the network, and differs from PyTorch's in the last bits.
"""

import sys
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from waterfill.coding import native
from waterfill.runtime.decoder.seal import Seal
from waterfill.runtime.layers.linear import PackedLinear
from waterfill.runtime.matrix import runs_here

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_CACHES, _CAPTURES = "transformers.cache_utils", "transformers.utils.output_capturing"
_CHOSEN = "_attn_implementation_internal"
"""Of a config, where transformers keeps how attention is to run."""
_ATTENTION, _SILU = ("sdpa", "eager"), ("SiLU", "SiLUActivation")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_INPUTS, _OUTPUTS = ("q_proj", "k_proj", "v_proj"), ("o_proj", "gate_proj", "up_proj", "down_proj")


_known: "WeakKeyDictionary[nn.Module, tuple[Seal, _Layer]]" = WeakKeyDictionary()
"""What was found out of layers, for as long as they stay as they were."""


class Kinds(NamedTuple):
    """The classes of a family: of its layers, and of what these consist of; and their forward passes, which others may
    put their own in the place of."""

    layer: Any
    attention: Any
    inner: Any
    norm: Any
    forwards: tuple[Any, ...]

    @classmethod
    def of(cls, layer: type, family: str) -> "Kinds | None":
        """None where the classes are not to be found, or where somebody has changed them."""
        names = [f"{family}{what}" for what in ("Attention", "MLP", "RMSNorm")]
        attention, inner, norm = (getattr(sys.modules[layer.__module__], name, None) for name in names)
        forwards = tuple(getattr(kind, "forward", None) for kind in (layer, attention, inner, norm))
        if any(getattr(forward, "__module__", None) != layer.__module__ for forward in forwards):
            return None
        return cls(layer, attention, inner, norm, forwards)

    @property
    def unchanged(self) -> bool:
        """Whether the forward passes are still those."""
        return all(kind.forward is own for kind, own in zip(self[:4], self.forwards, strict=True))


def through(kinds: Kinds, layer: nn.Module, x: Tensor, given: Mapping[str, Any]) -> Tensor | None:
    """The output [1, 1, width] of a layer for one token x [1, 1, width], as its forward pass would give it; None where
    that is to run itself: for more tokens, masks, gradients, other caches, where hooks look on, and where something in
    the layer is not what it was."""
    cache, angles = given.get("cache", given.get("past_key_values")), given.get("position_embeddings")
    if (
        not runs_here(x)  # which a compiler must meet first
        or torch.is_grad_enabled()
        or x.dtype not in _TYPES
        or x.shape[:-1] != (1, 1)
        or given.get("attention_mask") is not None
        or cache is None
        or angles is None
        or layer.training
        or torch.is_autocast_enabled("cpu")
        or native.core is None
    ):
        return None
    found = _found(kinds, layer)
    return found.run(x, cache, angles) if found is not None and found.takes(x, cache, angles) else None


def _found(kinds: Kinds, layer: nn.Module) -> "_Layer | None":
    """What the core is to know of a layer, found out anew where something in it has changed."""
    seal, found = _known.get(layer, (None, None))
    if seal is not None and seal.whole and kinds.unchanged:
        return found
    found = _Layer.of(kinds, layer)
    _known.pop(layer, None)
    if found is not None and _CHOSEN in found.attention.config.__dict__:
        _known[layer] = (found.seal(layer), found)
    return found


class _Layer(NamedTuple):
    """What the core is to know of a layer: the weights of its norms and what is added to their variances, the matrices
    of `_INPUTS` and `_OUTPUTS`, the rows of each, and their biases."""

    attention: Any
    weights: list[Any]
    eps: list[float]
    matrices: Any
    rows: list[int]
    biases: list[Any]

    @classmethod
    def of(cls, kinds: Kinds, layer: nn.Module) -> "_Layer | None":
        """None where its forward pass is to run."""
        attention: Any = layer._modules.get("self_attn")  # found at once, unlike attributes
        inner: Any = layer._modules.get("mlp")
        norms: list[Any] = [layer._modules.get(name) for name in _NORMS]
        same = type(attention) is kinds.attention and type(inner) is kinds.inner
        if not (same and all(type(one) is kinds.norm for one in norms) and kinds.unchanged):
            return None
        linears = attention._modules | inner._modules
        packed = [linears.get(name) for name in (*_INPUTS, *_OUTPUTS)]
        if attention.config._attn_implementation not in _ATTENTION:
            return None
        records = [_records(one) for one in packed]
        terms = [one._modules.get("term") for one in packed if one is not None]
        if None in records or _watched(chain((attention, inner, *norms), linears.values(), terms)):
            return None
        biases = [one._parameters["bias"] for one in packed if one is not None]
        weights = [one._parameters["weight"] for one in norms if one is not None]
        rows = [record[0][1][0] for record in records]
        sizes = [weight.numel() for weight in weights if weight is not None]
        known = type(inner.act_fn).__name__ in _SILU and all(each.is_cpu for each in weights if each is not None)
        fitting = all(bias is None or (bias.is_cpu and bias.numel() == n) for bias, n in zip(biases, rows, strict=True))
        if not (known and fitting and sizes == [rows[3], rows[-1]]):
            return None
        assert native.core is not None  # the caller has looked
        return cls(
            attention, weights, [one.variance_epsilon for one in norms], native.core.Matrices(records), rows, biases
        )

    def seal(self, layer: nn.Module) -> Seal:
        """What must not change for this to stay true. It does not hold the layer itself."""
        named = layer._modules
        names = ("self_attn", "mlp", *_NORMS)
        modules = [module for name in names if (one := named[name]) is not None for module in one.modules()]
        told: list[tuple[dict[str, Any], tuple[str, ...]]] = [(named, names)]
        told += [(self.attention.config.__dict__, (_CHOSEN,)), (self.attention.__dict__, ("config",))]
        told += [(module.__dict__, ("large", "size", "variance_epsilon")) for module in modules]
        return Seal(modules, told)

    def takes(self, x: Tensor, cache: Any, angles: Any) -> bool:
        """Whether this is a token, angles and a cache of keys and values as `run` is to have them."""
        head, place, caches = self.attention.head_dim, self.attention.layer_idx, sys.modules.get(_CACHES)
        if x.shape[-1] != self.weights[0].numel() or [each.shape for each in angles] != [(1, 1, head)] * 2:
            return False
        if type(cache) is not getattr(caches, "DynamicCache", None) or len(cache.layers) <= place:
            return False
        own = cache.layers[place]
        if type(own) is not getattr(caches, "DynamicLayer", None) or not isinstance(own.keys, Tensor):
            return False
        shape = (1, self.rows[1] // head)
        return own.keys.shape[:2] == own.values.shape[:2] == shape and own.keys.shape[2:] == own.values.shape[2:]

    def run(self, x: Tensor, cache: Any, angles: tuple[Tensor, Tensor]) -> Tensor:
        """The output for a token, whose keys and values the cache takes. angles: cosines and sines [1, 1, head]."""
        core, threads, count = native.core, torch.get_num_threads(), len(_INPUTS)
        assert core is not None
        own, first, second, *turns = map(_plain, (x, *self.weights, *angles))
        biases = [None if bias is None else _plain(bias) for bias in self.biases]
        added = [0 if bias is None else bias.data_ptr() for bias in biases]
        width, head = x.shape[-1], angles[0].shape[-1]
        heads = [rows // head for rows in self.rows[:count]]
        made = [torch.empty(1, many, 1, head, dtype=torch.float32, device="cpu") for many in heads]
        places = [each.data_ptr() for each in (own, first, *turns, *made)]
        core.decoder_inputs(places, added[:count], self.matrices, [width, head], self.eps[0], threads)
        fresh = [each.to(x.dtype) for each in made[1:]]
        keys, values = map(_plain, cache.update(*fresh, self.attention.layer_idx))
        out = torch.empty_like(own)
        places = [each.data_ptr() for each in (own, made[0], keys, values, second, out)]
        sizes = [width, *heads[:2], head, *keys.shape[2:3]]
        core.decoder_outputs(places, added[count:], self.matrices, sizes, self.eps[1], self.attention.scaling, threads)
        return out.to(x.dtype)


def _records(linear: nn.Module | None) -> Any:
    """The matrices of a packed layer for the core; None where that does not multiply them."""
    term = linear._modules["term"] if type(linear) is PackedLinear else None
    if term is None or term._forward_hooks or term.large == 1:
        return None
    return term.records()  # type: ignore[operator]


def _watched(modules: Iterable[nn.Module | None]) -> bool:
    """Whether a hook, or a forward pass of its own, is to see what a module is given."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    for one in modules:
        if one is None:
            continue
        own = one.__dict__.get("forward")
        if own is not None and getattr(own, "__func__", None) is not type(one).forward:
            return True
        if one._forward_pre_hooks or not all(map(_is_idle, one._forward_hooks.values())):
            return True
    return False


def _is_idle(hook: Any) -> bool:
    """Whether a hook is one that transformers leaves behind when it has once returned what layers say inside."""
    captures = sys.modules.get(_CAPTURES)
    if captures is None or getattr(hook, "__module__", None) != _CAPTURES:
        return False
    active = getattr(captures, "_active_collector", None)
    return active is not None and not active.get()


def _plain(value: Tensor) -> Tensor:
    """The same as the core reads it: contiguous float32."""
    return (value if value.dtype is torch.float32 else value.float()).contiguous()


def fits(kinds: Kinds, layer: nn.Module) -> bool:
    """Whether a layer is, for its matrices and its kind, one that `through` can run."""
    found = _Layer.of(kinds, layer)
    if found is None or getattr(found.attention.config, "sliding_window", None) is not None:
        return False
    linears = found.attention._modules | layer.mlp._modules  # type: ignore[union-attr]
    q, k, v, o, gate, up, down = (linears[name] for name in (*_INPUTS, *_OUTPUTS))
    width, head = len(found.weights[0]), found.attention.head_dim
    return (
        head % 2 == 0
        and {one.in_features for one in (q, k, v, gate, up)} == {width}
        and {one.out_features for one in (o, down)} == {width}
        and k.out_features == v.out_features
        and q.out_features % k.out_features == 0 == k.out_features % head
        and o.in_features == q.out_features
        and gate.out_features == up.out_features == down.in_features
    )
