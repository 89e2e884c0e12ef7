"""One step of a recurrent layer, of the products of its inputs and of its state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from waterfill.errors import BadInput

State = tuple[Tensor, ...]
"""The state [batch, hidden] of a step; behind it that of the cells, for an LSTM."""
Step = Callable[[Tensor, Tensor, State], State]


def lstm(given: Tensor, kept: Tensor, state: State) -> State:
    """given, kept: gates [batch, 4 hidden] of the inputs and of the state, biases added."""
    entering, forgetting, cell, leaving = (given + kept).chunk(4, -1)
    cells = forgetting.sigmoid() * state[1] + entering.sigmoid() * cell.tanh()
    return leaving.sigmoid() * cells.tanh(), cells


def gru(given: Tensor, kept: Tensor, state: State) -> State:
    """given, kept: gates [batch, 3 hidden] of the inputs and of the state, biases added."""
    (reset, update, new), (own_reset, own_update, own_new) = given.chunk(3, -1), kept.chunk(3, -1)
    made = (new + (reset + own_reset).sigmoid() * own_new).tanh()
    return (made + (update + own_update).sigmoid() * (state[0] - made),)


def rnn_tanh(given: Tensor, kept: Tensor, state: State) -> State:
    """given, kept: [batch, hidden], biases added."""
    return ((given + kept).tanh(),)


def rnn_relu(given: Tensor, kept: Tensor, state: State) -> State:
    """given, kept: [batch, hidden], biases added."""
    return ((given + kept).relu(),)


STEPS: dict[str, Step] = {"LSTM": lstm, "GRU": gru, "RNN_TANH": rnn_tanh, "RNN_RELU": rnn_relu}
"""By the mode of a recurrent layer of PyTorch."""
FUSED: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
"""PyTorch's own functions of whole sequences, by mode."""


def states_of(given: "Tensor | State | None", x: Tensor, wanted: "tuple[tuple[int, ...], ...]") -> State:
    """The first state; zeros where none is given. Raises BadInput for shapes that are not those wanted."""
    if given is None:
        return tuple(torch.zeros(shape, dtype=x.dtype, device=x.device) for shape in wanted)
    states = (given,) if isinstance(given, Tensor) else tuple(given)
    if tuple(tuple(state.shape) for state in states) != wanted:
        found, expected = [list(state.shape) for state in states], [list(shape) for shape in wanted]
        raise BadInput(f"the state of a packed recurrent layer has the shapes {expected}, and these are {found}")
    return states
