"""Layers whose inputs can be rounded to 8 bits, and what stands in their places then."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from waterfill.part import Codes
from waterfill.runtime.int8 import kernel
from waterfill.runtime.int8.observe import Seen
from waterfill.runtime.int8.rounding import Given, Rounded, codes_of, error_by_token, rounded, smooth
from waterfill.runtime.int8.term import Int8Term
from waterfill.runtime.layers.convolution import PackedConvolution, pays
from waterfill.runtime.layers.linear import PackedLinear
from waterfill.runtime.leaves import CodesTerm, Term
from waterfill.runtime.packing.sites import layers_of
from waterfill.runtime.terms import WholeTerm, term_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_OTHERS = (nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WORTH = 0.5
"""Weights of a linear layer are rounded once more where that leaves so small a share of the error."""
_CODES = 127


@dataclass(eq=False)
class Site:
    """A layer of a network, and the same layer with inputs of 8 bits. before: its term, None where it is dense."""

    name: str
    layer: nn.Module
    made: PackedConvolution | PackedLinear
    before: Term | None
    after: Term

    def switch(self, model: nn.Module, on: bool) -> nn.Module:
        """Let the layer round its inputs, or not; returns the network, which is another where it is one dense layer."""
        if self.before is not None:
            self.made.term = self.after if on else self.before
            return model
        old, new = (self.layer, self.made) if on else (self.made, self.layer)
        if model is old:
            return new
        for module in list(model.modules()):
            for name, child in list(module._modules.items()):
                if child is old:
                    setattr(module, name, new)
        return model

    def run(self, x: Tensor, on: bool) -> Tensor:
        """The outputs of the layer alone; the caller lets it rest afterwards."""
        if self.before is not None:
            self.made.term = self.after if on else self.before
        made: Tensor = self.made(x) if on or self.before is not None else self.layer(x)
        return made

    def rest(self) -> None:
        """Let a packed layer be as it was."""
        if self.before is not None:
            self.made.term = self.before


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Layers that multiply matrices with inputs, each once, and the dimension of the channels of these."""
    plain = {id(layer) for _, layer in layers_of(model) if type(layer) in (nn.Linear, *_CONVOLUTIONS, *_OTHERS)}
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLinear) or (id(layer) in plain and type(layer) is nn.Linear):
            yield name, layer, -1
        elif isinstance(layer, PackedConvolution) or id(layer) in plain:
            yield name, layer, -1 - len(layer.kernel_size)


def sites_of(layers: Mapping[str, nn.Module], seen: Mapping[str, Seen]) -> dict[str, "Site | str"]:
    """The sites of layers by name, or why there is none. Convolutions that read the same inputs round them alike."""
    found: dict[str, Site | str] = {}
    alike: dict[tuple[str, str], list[str]] = {}
    for name, layer in layers.items():
        own = _unusable(layer, seen[name])
        if own:
            found[name] = own
        elif _linear(layer):
            found[name] = _placed(name, layer, _by_token(_term(layer), _given(layer, seen[name])), seen[name])
        else:
            source = seen[name].source
            alike.setdefault((source, "") if source else ("", name), []).append(name)
    for names in alike.values():
        given = [_given(layers[name], seen[name]) for name in names]
        for name, one, how in zip(names, given, rounded(given, kernel.largest_code()), strict=True):
            kernel_size = cast(Any, layers[name]).kernel_size
            found[name] = _placed(name, layers[name], Int8Term(how, kernel_size, one.groups), seen[name])
    return {name: found[name] for name in layers}


def _unusable(layer: nn.Module, seen: Seen) -> str:
    """Why the inputs of a layer cannot be rounded, or ""."""
    if seen.low is None or seen.high is None:
        return "no calibration input reached it as its first argument"
    tensor = next(iter((*layer.buffers(), *layer.parameters())), None)
    if tensor is None or not tensor.is_cpu or not seen.dtype.is_floating_point:
        return "int8 kernels run on a CPU"
    return "" if _linear(layer) else _unfit(layer)


def _linear(layer: nn.Module) -> bool:
    return isinstance(layer, PackedLinear | nn.Linear)


def _term(layer: nn.Module) -> Term | None:
    """The term of a packed layer."""
    return layer.term if isinstance(layer, PackedConvolution | PackedLinear) else None


def _given(layer: nn.Module, seen: Seen) -> Given:
    """The weights and inputs of a layer."""
    before, plain = _term(layer), cast(Any, layer)
    weight = before.restored() if before is not None else plain.weight.detach().float().flatten(1)
    exact = before.exact if before is not None else None
    assert seen.low is not None and seen.high is not None  # it can be used
    return Given(weight, seen.rows, seen.low, seen.high, exact, getattr(layer, "groups", 1))


def _placed(name: str, layer: Any, after: "Term | str", seen: Seen) -> "Site | str":
    """The site of a layer and what stands in its place, or why there is none."""
    if isinstance(after, str):
        return after
    made = layer
    if not isinstance(layer, PackedConvolution | PackedLinear):
        made = PackedLinear(after, layer) if _linear(layer) else PackedConvolution(after, layer)
    site = Site(name, layer, made, _term(layer), after)
    return _failing(site, seen) or site


def _failing(site: Site, seen: Seen) -> str:
    """Why a layer does not run with 8-bit inputs, or "": kernels do not know every geometry on every processor."""
    try:
        site.run(torch.zeros(seen.shape, dtype=seen.dtype, device="cpu"), True)
    except RuntimeError as error:
        return f"its int8 kernel does not run: {str(error).splitlines()[0]}"
    finally:
        site.rest()
    return ""


def _unfit(layer: Any) -> str:
    """Why a convolution has no int8 kernel, or ""."""
    if kernel.missing():
        return kernel.missing()
    if why := _unknown(layer):
        return why
    if isinstance(layer, PackedConvolution):
        inner = layer.term.of_columns[1] if layer.term.of_columns and layer.groups == 1 else layer.term
        if inner.factors and layer.groups == 1 and pays(inner):
            return "thin factors take fewer multiplications"
    return ""


def _unknown(layer: Any) -> str:
    """Why the kernels do not know the geometry of a convolution, or ""."""
    kernel_size, dilation = tuple(layer.kernel_size), tuple(layer.dilation)
    if getattr(layer, "transposed", False):
        return "there are no int8 kernels for transposed convolutions"
    if len(kernel_size) > 2:
        return "there are int8 kernels for convolutions of one and two dimensions only"
    uneven = any(d * (size - 1) % 2 for size, d in zip(kernel_size, dilation, strict=True))
    if layer.padding == "same" and uneven:
        return "its padding is not the same at both ends"
    if layer.in_channels == layer.groups and _beyond(layer):
        return "with one channel in, the int8 kernels are wrong where nothing but padding is read"
    return ""


def _beyond(layer: Any) -> bool:
    """Whether a kernel may read padding alone."""
    if isinstance(layer.padding, str):
        return False
    sizes = zip(layer.padding, layer.kernel_size, layer.dilation, strict=True)
    return any(padding > dilation * (size - 1) for padding, size, dilation in sizes)


def _by_token(before: Term | None, given: Given) -> "Term | str":
    """The term of a linear layer that rounds each input vector by its own range: with the codes as they are, or with
    weights that are rounded once more, outlier channels of the inputs in the scales of their columns."""
    codes = [] if before is None else [term for term in before.modules() if isinstance(term, CodesTerm)]
    if codes and all(term.size == 1 for term in codes):
        return "its inputs are rounded to 8 bits already"
    ways = [_again(given, channels) for channels in (torch.ones_like(given.low), smooth([given]))]
    best = min(ways, key=lambda way: way.error)
    if before is not None and codes:
        columns = given.exact[2] if given.exact is not None else None
        if best.error >= _WORTH * error_by_token(given, torch.ones_like(given.low) if columns is None else columns):
            return _with_small_inputs(before)
    made = Codes(best.codes.to(torch.int16), best.scales[:, None], columns=best.channels)
    term = term_of(made, 1)
    return term if not isinstance(term, WholeTerm) else f"no kernel for it: {term.reason}"


def _again(given: Given, channels: Tensor) -> Rounded:
    """The weights rounded once more, their columns divided by the factors of the channels."""
    codes, scales = codes_of(given.times(given.weight, 1 / channels), _CODES)
    lost = (codes * scales[:, None] * channels - given.weight).square().sum(0)
    error = float(lost @ given.rows.square().mean(0)) + error_by_token(given, channels)
    return Rounded(codes, scales, channels, 1.0, 0, False, error)


def _with_small_inputs(term: Term) -> Term:
    """The same matrix, its tensors shared, with inputs of 8 bits."""
    made = copy.deepcopy(term, {id(value): value for value in term.buffers()})
    for each in made.modules():
        if isinstance(each, CodesTerm):
            each.size = 1
    return made
