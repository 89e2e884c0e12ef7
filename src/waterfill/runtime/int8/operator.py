"""int8 convolutions as an operator of PyTorch, which compilers, exporters and vmap see, on every device."""

from typing import Any

import torch
from torch import Tensor

from waterfill.runtime.batching import over_batches
from waterfill.runtime.int8 import kernel, order
from waterfill.runtime.int8.kernel import Kernels
from waterfill.runtime.layers.geometry import Geometry

_LIBRARY = torch.library.Library("waterfill", "FRAGMENT")
_LIBRARY.define(
    "int8_convolution(Tensor x, Tensor codes, Tensor scales, Tensor factors, Tensor unit, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, int groups) -> Tensor"
)


def by_operator(x: Tensor, kernels: Kernels, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """As `kernel.convolved`; on devices other than a CPU the integers are multiplied as floats."""
    own = (kernels.codes, kernels.scales, kernels.factors, kernels.unit, bias)
    lists = [list(each) for each in (geometry.stride, geometry.padding, geometry.dilation)]
    made: Tensor = torch.ops.waterfill.int8_convolution(x, *own, *lists, geometry.groups)
    return made


def _on_cpu(x: Tensor, *given: Any) -> Tensor:
    return _each(kernel.convolved, x, given)


def _elsewhere(x: Tensor, *given: Any) -> Tensor:
    return _each(kernel.by_floats, x, given)


def _each(run: Any, x: Tensor, given: tuple[Any, ...]) -> Tensor:
    """Of inputs [..., channels, height, width]: dimensions before the batch are those that vmap adds."""
    if x.dim() == 4:
        return run(x, *_read(given))
    made: Tensor = run(x.flatten(0, -4), *_read(given))
    return made.unflatten(0, x.shape[:-3])


def _shape(x: Tensor, *given: Any) -> Tensor:
    """What compilers see."""
    kernels, _, geometry = _read(given)
    assert not isinstance(geometry.padding, str)  # which the term has made numbers
    sizes = zip(x.shape[-2:], geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
    places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    made = x.new_empty((*x.shape[:-3], kernels.codes.shape[0], *places), dtype=torch.float32)
    return made.contiguous(memory_format=order.format_of(x)) if x.dim() == 4 else made


def _read(given: tuple[Any, ...]) -> tuple[Kernels, Tensor | None, Geometry]:
    """The arguments of the operator after the inputs."""
    *tensors, bias, stride, padding, dilation, groups = given
    kernels = Kernels(*tensors)
    kernel_size = tuple(kernels.codes.shape[2:])
    return kernels, bias, Geometry(kernel_size, tuple(stride), tuple(padding), tuple(dilation), groups)


_LIBRARY.impl("int8_convolution", _on_cpu, "CPU")
_LIBRARY.impl("int8_convolution", _elsewhere, "CompositeExplicitAutograd")
torch.library.register_fake("waterfill::int8_convolution", _shape, lib=_LIBRARY)
over_batches(_LIBRARY, "int8_convolution")
