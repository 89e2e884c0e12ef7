"""Recurrent layers step by step, as torch defines them, so that every product with a weight can be traced.

The equations are those of the documentation of torch.nn.LSTM, GRU and RNN. Sequences are taken in packed form: the
entries of each time step after one another, and how many sequences are still running.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
"""(h,), or (h, c) of an LSTM, each [sequences, hidden]."""
MODES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_PAIR = 2  # weights of a direction: of the input, of the state


@dataclass(frozen=True)
class Call:
    """The arguments of torch.lstm, torch.gru, torch.rnn_tanh or torch.rnn_relu.

    data: [entries, features], packed. sizes: sequences running at each step, never growing. state: (h,) or (h, c), each
    [layers * directions, sequences, hidden]. weights: torch's flat list.
    """

    mode: str
    data: Tensor
    sizes: tuple[int, ...]
    state: State
    weights: Sequence[Tensor]
    biased: bool
    layers: int
    directions: int


def call_of(mode: str, args: Sequence[Any]) -> tuple[Call, Callable[[Tensor], Tensor]]:
    """The arguments of a call, and a function from its packed output to the shape that the call returns."""
    if isinstance(args[3], list | tuple):  # (data, batch_sizes, state, weights, bias, layers, dropout, train, both)
        data, sizes, state, weights, biased, layers, _, _, both = args
        counts = tuple(int(size) for size in sizes)
        return Call(mode, data, counts, states_of(state), weights, biased, layers, 2 if both else 1), lambda out: out
    x, state, weights, biased, layers, _, _, both, batch_first = args
    x = x.transpose(0, 1) if batch_first else x
    steps, batch = x.shape[:2]
    data, counts = x.reshape(steps * batch, -1), (batch,) * steps
    call = Call(mode, data, counts, states_of(state), weights, biased, layers, 2 if both else 1)

    def unpacked(out: Tensor) -> Tensor:
        whole = out.reshape(steps, batch, -1)
        return whole.transpose(0, 1) if batch_first else whole

    return call, unpacked


def states_of(state: Any) -> State:
    """The states of a call, one or two, as a tuple."""
    return tuple(state) if isinstance(state, tuple | list) else (state,)


def unroll(call: Call) -> tuple[Tensor, State]:
    """The packed output [entries, directions * hidden] of the last layer and the final states, as in `Call.state`."""
    projected = call.mode == "lstm" and call.state[0].shape[2] != call.state[1].shape[2]
    each = _PAIR * (2 if call.biased else 1) + projected
    data, finals = call.data, []
    for layer in range(call.layers):
        outs = []
        for direction in range(call.directions):
            k = layer * call.directions + direction
            weights = call.weights[k * each : (k + 1) * each]
            biases = list(weights[2:4]) if call.biased else [None, None]
            state = tuple(s[k] for s in call.state)
            inputs = F.linear(data, weights[0], biases[0]).split(call.sizes)
            projection = weights[-1] if projected else None
            out, final = _run(call, inputs, state, (weights[1], biases[1], projection), direction == 1)
            outs.append(out)
            finals.append(final)
        data = torch.cat(outs, 1)
    return data, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _run(
    call: Call, inputs: Sequence[Tensor], state: State, weights: tuple[Tensor, Tensor | None, Tensor | None], back: bool
) -> tuple[Tensor, State]:
    """One direction of one layer; weights: of the state, its bias, of the projection."""
    outs: list[Tensor] = [inputs[0]] * len(inputs)
    order = range(len(inputs))
    for t in reversed(order) if back else order:
        running = call.sizes[t]
        before = tuple(s[:running] for s in state)
        gates = F.linear(before[0], weights[0], weights[1])
        after = step(call.mode, inputs[t], gates, before)
        if weights[2] is not None:
            after = (F.linear(after[0], weights[2]), *after[1:])
        outs[t] = after[0]
        state = tuple(torch.cat([new, old[running:]]) for new, old in zip(after, state, strict=True))
    return torch.cat(outs), state


def step(mode: str, inputs: Tensor, gates: Tensor, before: State) -> State:
    """One step from W_ih x + b_ih and W_hh h + b_hh, [sequences, gates * hidden] each."""
    if mode == "lstm":
        i, f, g, o = (inputs + gates).chunk(4, 1)
        cell = f.sigmoid() * before[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if mode == "gru":
        (r, z, n), (hr, hz, hn) = inputs.chunk(3, 1), gates.chunk(3, 1)
        update = (z + hz).sigmoid()
        new = (n + (r + hr).sigmoid() * hn).tanh()
        return (update * before[0] + (1 - update) * new,)
    total = inputs + gates
    return (total.relu() if mode == "rnn_relu" else total.tanh(),)
