"""Restores what a run of a network may change: buffers, attributes, and the state of random number generators.

So every run of a batch starts from the same state and the same random numbers, and leaves the network and its owner's
generators unchanged.
"""

import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.dtypes import octets
from waterfill.errors import BadInput
from waterfill.network.running.batches import is_plain, tensors_in

_SAMPLED = 64  # entries of a tensor that distinguish batches
_UNCHANGING = frozenset(
    {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, FunctionType}
)
_Undo = Callable[[], None]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers of the model, and attributes that its modules were given, are after the block what they were before it.

    Lists, dicts and sets among them get their content back, tensors and generators their values. Parameters are not
    restored: they are most of a network, and a forward pass does not write into them.
    """
    undo: list[_Undo] = []
    for module in model.modules():
        _keep_module(module, undo)
    try:
        yield
    finally:
        with torch.no_grad():
            for back in undo:
                back()


def _keep_module(module: nn.Module, undo: list[_Undo]) -> None:
    """Note what restores the state of one module, without its children."""
    if isinstance(module, torch.jit.ScriptModule):
        for _, buffer in module.named_buffers(recurse=False):
            _keep(buffer, undo)
        return
    _keep(module._buffers, undo)
    common = _of_every_module()
    own = {key: value for key, value in vars(module).items() if key not in common}
    for value in own.values():
        _keep(value, undo)

    def rebind() -> None:
        now = vars(module)
        for key in [key for key in now if key not in own and key not in common]:
            del now[key]
        now.update(own)

    undo.append(rebind)


@cache
def _of_every_module() -> frozenset[str]:
    """Attributes by which PyTorch itself keeps a module."""
    return frozenset(vars(nn.Module()))


def _keep(value: Any, undo: list[_Undo]) -> None:
    """Note what restores a value; containers are restored recursively."""
    kind = type(value)
    if kind in _UNCHANGING:  # most attributes of most layers, and this runs for every batch
        return
    if kind is tuple:
        for item in value:
            _keep(item, undo)
    elif kind is not dict and isinstance(value, Tensor):
        if is_plain(value) and value.is_leaf:
            undo.append(_keep_tensor(value))
    elif kind is torch.Generator:
        state = value.get_state()
        undo.append(lambda: _ignore(value.set_state(state)))
    elif isinstance(value, MutableMapping):
        items = dict(value)
        for item in items.values():
            _keep(item, undo)
        undo.append(lambda: _refill(value, items))
    elif isinstance(value, list | set | deque):
        content = tuple(value)
        for item in content:
            _keep(item, undo)
        undo.append(lambda: _refill_sequence(value, content))


def _ignore(_: Any) -> None:
    """For calls whose result is not used."""


def _refill(container: MutableMapping[Any, Any], items: dict[Any, Any]) -> None:
    if list(container) != list(items) or any(container[key] is not item for key, item in items.items()):
        container.clear()
        container.update(items)


def _refill_sequence(container: "list[Any] | set[Any] | deque[Any]", content: tuple[Any, ...]) -> None:
    if len(container) != len(content) or any(a is not b for a, b in zip(container, content, strict=True)):
        container.clear()
        container.update(content) if isinstance(container, set) else container.extend(content)


def _keep_tensor(value: Tensor) -> _Undo:
    """A function that restores the entries of a tensor if they were written to or replaced."""
    memory, entries = value.detach(), value.detach().clone()
    version = None if value.is_inference() else value._version

    def back() -> None:
        moved = value.data_ptr() != memory.data_ptr() or value.shape != memory.shape
        if version is not None and value._version == version and not moved:
            return
        with torch.inference_mode(version is None):
            if value.grad_fn is not None:
                value.detach_()  # it was written to as part of a graph that is no longer needed
            memory.copy_(entries)
            if moved:
                value.data = memory

    return back


@contextmanager
def same_draws(batch: Any, seed: int = 0) -> Iterator[None]:
    """A block in which random numbers depend only on the content of the batch and on the seed.

    The generators of PyTorch, NumPy and Python are restored after.
    """
    with random_numbers(_mark(batch) ^ seed):
        yield


@contextmanager
def random_numbers(seed: int) -> Iterator[None]:
    """A block that draws its own random numbers from PyTorch, NumPy and Python; their owner's go on after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


def seed_all(seed: int) -> None:
    """Seed the generators of PyTorch, on every device in use, of NumPy and of Python.

    Raises BadInput for a seed that PyTorch does not take.
    """
    if not -(2**63) <= seed < 2**64:
        raise BadInput(f"seed={seed}: give a whole number from -2**63 to below 2**64")
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _mark(batch: Any) -> int:
    """A 32-bit checksum of samples of the tensors of a batch."""
    mark = 0
    for value in tensors_in(batch):
        if is_plain(value):
            flat = value.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // _SAMPLED)]
            mark = zlib.crc32(octets(some.contiguous().cpu()).numpy().tobytes(), mark)
    return mark
