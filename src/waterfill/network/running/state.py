"""What a run of a network may change beside its outputs, put back: buffers, attributes, and the state of generators.

So every run of a batch starts from the same state and the same random numbers, and leaves the network and its owner's
generators as it found them.
"""

import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.dtypes import octets
from waterfill.network.running.batches import is_plain, tensors_in

_SAMPLED = 64  # entries of a tensor that tell batches apart
_Undo = Callable[[], None]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers of the model, and attributes that its modules were given, are after the block what they were before it.

    A list, dict or set among them gets its content back, a tensor or a generator its values. Parameters are not looked
    after: they are most of a network, and a forward that writes into them is none.
    """
    undo: list[_Undo] = []
    for module in model.modules():
        undo += _keep_module(module)
    try:
        yield
    finally:
        with torch.no_grad():
            for back in undo:
                back()


def _keep_module(module: nn.Module) -> Iterator[_Undo]:
    """What puts the state of one module back, its children's excepted."""
    if isinstance(module, torch.jit.ScriptModule):
        for _, buffer in module.named_buffers(recurse=False):
            yield from _keep(buffer)
        return
    yield from _keep(module._buffers)
    own = {key: value for key, value in vars(module).items() if key not in _of_every_module()}
    for value in own.values():
        yield from _keep(value)

    def rebind() -> None:
        now = vars(module)
        for key in [key for key in now if key not in own and key not in _of_every_module()]:
            del now[key]
        now.update(own)

    yield rebind


@cache
def _of_every_module() -> frozenset[str]:
    """Attributes by which PyTorch itself keeps a module."""
    return frozenset(vars(nn.Module()))


def _keep(value: Any) -> Iterator[_Undo]:
    """What puts a value back; containers are looked into."""
    if isinstance(value, Tensor):
        if is_plain(value) and value.is_leaf:
            yield _keep_tensor(value)
    elif isinstance(value, torch.Generator):
        state = value.get_state()
        yield lambda: _ignore(value.set_state(state))
    elif isinstance(value, MutableMapping):
        items = dict(value)
        for item in items.values():
            yield from _keep(item)
        yield lambda: _refill(value, items)
    elif isinstance(value, list | set | deque):
        content = tuple(value)
        for item in content:
            yield from _keep(item)
        yield lambda: _refill_sequence(value, content)
    elif type(value) is tuple:
        for item in value:
            yield from _keep(item)


def _ignore(_: Any) -> None:
    """Nothing to say."""


def _refill(found: MutableMapping[Any, Any], items: dict[Any, Any]) -> None:
    if list(found) != list(items) or any(found[key] is not item for key, item in items.items()):
        found.clear()
        found.update(items)


def _refill_sequence(found: "list[Any] | set[Any] | deque[Any]", content: tuple[Any, ...]) -> None:
    if len(found) != len(content) or any(a is not b for a, b in zip(found, content, strict=True)):
        found.clear()
        found.update(content) if isinstance(found, set) else found.extend(content)


def _keep_tensor(value: Tensor) -> _Undo:
    """What puts the entries of a tensor back if they were written to, or if others took their place."""
    memory, entries = value.detach(), value.detach().clone()
    version = None if value.is_inference() else value._version

    def back() -> None:
        moved = value.data_ptr() != memory.data_ptr() or value.shape != memory.shape
        if version is not None and value._version == version and not moved:
            return
        with torch.inference_mode(version is None):
            if value.grad_fn is not None:
                value.detach_()  # written to with a graph, which is of no more use
            memory.copy_(entries)
            if moved:
                value.data = memory

    return back


@contextmanager
def same_draws(batch: Any, seed: int = 0) -> Iterator[None]:
    """Random numbers in the block depend on what the batch holds and on the seed alone; generators come back after.

    Those of PyTorch, of NumPy and of Python.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    start = _mark(batch) ^ seed
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(start)
        if devices:
            torch.cuda.manual_seed_all(start)
        random.seed(start)
        np.random.seed(start)
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


def _mark(batch: Any) -> int:
    """A number of 32 bits for what the tensors of a batch hold."""
    mark = 0
    for value in tensors_in(batch):
        if is_plain(value):
            flat = value.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // _SAMPLED)]
            mark = zlib.crc32(octets(some.contiguous().cpu()).numpy().tobytes(), mark)
    return mark
