"""A network of transformers that runs from compressed weights: which of them a layer holds as they are in the file, and
the layers put in their places. All others (fused, permuted, of other layers) are loaded dense, by transformers."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from waterfill.model.entry import Entry
from waterfill.model.lazy import CompressedTensors
from waterfill.network.layout import Layout
from waterfill.runtime.pack import pack_named
from waterfill.runtime.packing.sites import layers_of, weights_of
from waterfill.runtime.packing.stacks import stacks_of


def held_for(cls: Any, config: Any, args: tuple[Any, ...], tensors: CompressedTensors) -> dict[str, str]:
    """Names in the file of weights that layers and stacks of the model hold under some name, and nothing done to them;
    each with that name. The model is built on the meta device to see."""
    with torch.device("meta"):
        model = cls._from_config(config, *args)
    state, found = model.state_dict(), {}
    names = {f"{name}.{weight}" for name, layer in layers_of(model) for weight in weights_of(layer)}
    names |= {name for name, _, _ in stacks_of(model)}
    for name, target in _renamed(model, tensors):
        layout = tensors.layouts[tensors.aliases.get(name, name)]
        if target in names and tuple(state[target].shape) == layout.shape:
            found[name] = target
    return found


def put_packed(model: nn.Module, tensors: CompressedTensors, held: dict[str, str], input_bits: int) -> nn.Module:
    """Put packed layers into a loaded model in which the weights `held` have no content yet."""
    _release(model, set(held.values()))
    source = _Renamed(tensors, held)
    given = set(source.layouts) | set(source.aliases)
    tied = {id(value) for name, value in model.state_dict(keep_vars=True).items() if name in given}
    rest = {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in tied}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the module holds")  # narrower types are what was asked for
        packed = pack_named(source, model, dense=rest, input_bits=input_bits)
    vars(packed).pop("save_pretrained", None)  # which pack refuses, and which here writes the file again
    return packed


class _Renamed:
    """The matrices of a file by the names that a model has for them."""

    def __init__(self, tensors: CompressedTensors, names: dict[str, str]) -> None:
        self._tensors = tensors
        self._own = {target: tensors.aliases.get(name, name) for name, target in names.items()}
        first: dict[str, str] = {}
        for target, own in self._own.items():
            first.setdefault(own, target)
        self.aliases = {target: first[own] for target, own in self._own.items() if first[own] != target}
        self.layouts: dict[str, Layout] = {target: tensors.layouts[own] for own, target in first.items()}

    def entry(self, name: str) -> Entry:
        """One matrix as parts."""
        return replace(self._tensors.entry(self._own[name]), name=name)


def _renamed(model: Any, tensors: CompressedTensors) -> Iterator[tuple[str, str]]:
    """Names of the file, each with the one that transformers gives it in the model, where that is all it does."""
    conversions = get_model_conversion_mapping(model)
    renamings = [some for some in conversions if isinstance(some, WeightRenaming)]
    converters = [some for some in conversions if isinstance(some, WeightConverter)]
    state = model.state_dict()
    for name in tensors:
        target, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if converted is None or target not in state:
            yield name, (target if target in state else name)


def _release(model: nn.Module, names: set[str]) -> None:
    """Put weights on the meta device, tied ones together."""
    made: dict[int, nn.Parameter] = {}
    every = {name: value for name, value in model.named_parameters(remove_duplicate=False)}
    going = {id(every[name]) for name in names if name in every}
    for name, value in every.items():
        if id(value) in going:
            path, _, key = name.rpartition(".")
            empty = torch.empty_like(value, device="meta")
            made.setdefault(id(value), nn.Parameter(empty, requires_grad=value.requires_grad))
            model.get_submodule(path)._parameters[key] = made[id(value)]
