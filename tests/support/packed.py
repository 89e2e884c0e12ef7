"""Layers in packed form beside the same layers with restored weights, in float64."""

import copy

import torch
from torch import nn

import waterfill
from waterfill.recipe import parse
from waterfill.runtime import table


def pair(layer: nn.Module, recipe: str) -> tuple[nn.Module, nn.Module]:
    """A network of one layer, packed, and with restored weights in float64."""
    net = nn.ModuleDict({"layer": layer}).eval()
    budget = {} if parse(recipe).fixed_rate else {"price": 1e-6}
    made = waterfill.compress(net, spec=recipe, **budget)
    packed, dense = waterfill.pack(made, copy.deepcopy(net)), made.install(copy.deepcopy(net)).double()
    assert table(packed)[0]["runs"] == "packed", table(packed)
    return packed["layer"], dense["layer"]


def close(found: torch.Tensor, wanted: torch.Tensor, share: float) -> bool:
    """Whether an output is within a share of the largest magnitude."""
    assert found.shape == wanted.shape
    return bool((found.double() - wanted.double()).abs().max() <= share * wanted.double().abs().max())
