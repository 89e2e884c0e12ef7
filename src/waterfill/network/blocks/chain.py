"""A network as a chain: what runs before its blocks, each block by itself, and what runs after them.

What lies before and after is the network's own code, run with blocks that pass on what they are given. Whether the
chain computes what the network does is tested on one batch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import AsSet
from waterfill.errors import BadInput
from waterfill.network.batch_norm import nearly_equal
from waterfill.network.blocks.call import BlockCall, Form, Shared
from waterfill.network.blocks.find import Blocks
from waterfill.network.running.forward import Forward, call
from waterfill.network.running.plainly import plainly
from waterfill.network.running.state import same_draws, unchanged


class _Reached(Exception):
    """What was looked for has run; the rest of the network need not."""


@dataclass(eq=False)
class Chain:
    """A network and its blocks.

    model: run in a block of `as_deployed`. original: (number) -> a block with its weights, no module of `model`. form:
    of what blocks return; known after `check`.
    """

    model: nn.Module
    blocks: Blocks
    original: Callable[[int], nn.Module]
    forward: Forward | None = None
    form: Form = field(default_factory=lambda: Form(None, None))
    _shared: Shared = field(default_factory=Shared)

    def begin(self, batch: Any) -> tuple[Tensor, list[BlockCall]]:
        """The hidden state before the first block, and how each block is called. Raises BadInput."""
        calls: list[BlockCall] = []
        first: list[Tensor] = []

        def passing(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if i != len(calls):
                raise BadInput(
                    f"the blocks run in another order than that of {self.blocks.prefix!r}, or more than once"
                )
            found, hidden = BlockCall.of(args, kwargs)
            calls.append(self._shared.call(found))
            first.append(hidden)
            if len(calls) == len(self.blocks):
                raise _Reached
            return self.form.give(hidden)

        with self._replaced(passing), suppress(_Reached):
            call(self.model, batch, self.forward)
        if len(calls) < len(self.blocks):
            raise BadInput(f"only {len(calls)} of the {len(self.blocks)} blocks of {self.blocks.prefix!r} run")
        return first[0], calls

    def run(self, block: nn.Module, how: BlockCall, hidden: Tensor) -> Tensor:
        """The hidden state after a block."""
        with self._settled(block, hidden):
            return self.form.take(how.run(block, hidden))

    def end(self, batch: Any, hidden: Tensor, reached: Callable[[], None] = lambda: None) -> Tensor:
        """The outputs from the hidden state after the last block. reached: called when the last block has run."""

        def passing(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if i == len(self.blocks) - 1:
                reached()
            return self.form.give(hidden)

        with self._replaced(passing):
            return call(self.model, batch, self.forward)

    def whole(self, batch: Any) -> Tensor:
        """The outputs of the network itself, whose blocks are there one at a time."""

        def passing(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self.original(i)(*args, **kwargs)

        with self._replaced(passing):
            return call(self.model, batch, self.forward)

    def check(self, batch: Any) -> None:
        """Find what blocks return, and raise BadInput unless the chain gives the outputs of the network."""
        how, state = self._first(batch)
        block = self.original(0)
        with self._settled(block, state):
            self.form = Form.of(how.run(block, state), state)
        _, calls = self.begin(batch)
        for i, name in enumerate(self.blocks.names):
            before, state = state, self.run(self.original(i), calls[i], state)
            if state.shape != before.shape or state.dtype != before.dtype:
                raise BadInput(
                    f"block {name!r} makes {list(state.shape)} of {list(before.shape)}; the hidden states of a run of "
                    "blocks have one shape"
                )
        if not nearly_equal(self.end(batch, state), self.whole(batch)):
            raise BadInput(
                f"the blocks of {self.blocks.prefix!r}, run one by one, give other outputs than the network: something "
                "else passes between them"
            )

    def _first(self, batch: Any) -> tuple[BlockCall, Tensor]:
        """The call of the first block, and its hidden state."""
        found: list[tuple[BlockCall, Tensor]] = []

        def stop(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            found.append(BlockCall.of(args, kwargs))
            raise _Reached

        with self._replaced(stop), suppress(_Reached):
            call(self.model, batch, self.forward)
        if not found:
            raise BadInput(f"no block of {self.blocks.prefix!r} runs")
        return found[0]

    @contextmanager
    def _replaced(self, passing: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
        """A block of code in which the blocks call `passing` (number, arguments, keywords) instead of running."""
        with ExitStack() as stack:
            for i, name in enumerate(self.blocks.names):
                module = self.model.get_submodule(name)
                before = vars(module).get("forward")
                module.forward = lambda *args, i=i, **kwargs: passing(i, args, kwargs)
                stack.callback(_restore, module, before)
            yield

    @contextmanager
    def _settled(self, block: nn.Module, hidden: Tensor) -> Iterator[None]:
        """A block of code in which a block runs as it does in the network, and is left as it was."""
        with ExitStack() as stack:
            if isinstance(self.forward, AsSet):
                stack.enter_context(self.forward.block())
            if not torch.is_grad_enabled():
                stack.enter_context(unchanged(block))
            stack.enter_context(same_draws(hidden))
            stack.enter_context(plainly())
            yield


def _restore(module: nn.Module, before: Any) -> None:
    if before is None:
        del module.forward
    else:
        module.forward = before
