"""Recurrent layers that run from compressed weights.

A sequence of one step multiplies by the packed matrices. For a longer one the matrices of a layer are restored for the
call, one layer at a time, and go through PyTorch's own function of whole sequences.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from waterfill.errors import BadInput
from waterfill.runtime.layers.base import PackedLayer, shared
from waterfill.runtime.layers.gates import FUSED, STEPS, State, states_of
from waterfill.runtime.leaves import Term

_SHARED = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")


class PackedGates(PackedLayer):
    """A layer with several matrices, each with the name that its weight has."""

    def __init__(self, terms: Mapping[str, Term], like: nn.Module) -> None:
        weight: Tensor = getattr(like, next(iter(terms)))
        super().__init__(weight.dtype)
        self.matrices = nn.ModuleDict(terms)
        for name, value in like.named_parameters(recurse=False):
            if name not in terms:
                self.register_parameter(name, value)

    def terms(self) -> Iterator[Term]:
        return (term for term in self.matrices.values() if isinstance(term, Term))

    def __getattr__(self, name: str) -> Any:
        """Weights by name, restored anew each time."""
        matrices = self.__dict__.get("_modules", {}).get("matrices")
        if matrices is not None and name in matrices:
            return matrices[name].restored().to(self._like.dtype)
        return super().__getattr__(name)

    def _gates(self, kind: str, suffix: str, x: Tensor) -> Tensor:
        """The product of x [batch, features] with a weight, its bias added: [batch, gates * hidden]."""
        made: Tensor = self.matrices[f"weight_{kind}{suffix}"](x)
        bias = self._parameters.get(f"bias_{kind}{suffix}")
        return made if bias is None else made + bias.to(made.dtype)

    def _step(self, mode: str, suffix: str, x: Tensor, state: State) -> State:
        made = STEPS[mode](self._gates("ih", suffix, x), self._gates("hh", suffix, state[0]), state)
        name = f"weight_hr{suffix}"
        return (self.matrices[name](made[0]), *made[1:]) if name in self.matrices else made


class PackedCell(PackedGates):
    """An `LSTMCell`, a `GRUCell` or an `RNNCell`: one step, from packed matrices."""

    input_size: int
    hidden_size: int

    def __init__(self, terms: Mapping[str, Term], like: nn.RNNCellBase) -> None:
        super().__init__(terms, like)
        shared(self, like, ("input_size", "hidden_size", "bias"))
        self.nonlinearity = getattr(like, "nonlinearity", "tanh")
        kind = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}.get(type(like))
        self.mode = kind or f"RNN_{self.nonlinearity.upper()}"

    def forward(self, x: Tensor, hx: "Tensor | State | None" = None) -> "Tensor | State":
        if x.dim() not in (1, 2):
            raise BadInput(f"a packed cell takes [batch, features] or [features], and this is {list(x.shape)}")
        self._check(x)
        count = 2 if self.mode == "LSTM" else 1
        state = states_of(hx, x, ((*x.shape[:-1], self.hidden_size),) * count)
        made = self._step(self.mode, "", x, state)
        return made if self.mode == "LSTM" else made[0]


class PackedRecurrent(PackedGates):
    """An `LSTM`, a `GRU` or an `RNN`, of any depth, in one direction or in two, with projections or without."""

    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bias: bool
    batch_first: bool
    bidirectional: bool

    def __init__(self, terms: Mapping[str, Term], like: nn.RNNBase) -> None:
        super().__init__(terms, like)
        shared(self, like, _SHARED)
        self.mode = like.mode

    def multiplications(self, x: Tensor, y: Tensor) -> int:
        each = 0 if self.proj_size else sum(term.products for term in self.terms())  # as dense ones are counted
        return x.numel() // max(1, self.input_size) * each

    def flatten_parameters(self) -> None:
        """Nothing: weights are not in one piece of memory."""

    def forward(self, x: Any, hx: "Tensor | State | None" = None) -> Any:
        if isinstance(x, PackedSequence):
            return self._of_packed(x, hx)
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise BadInput(
                f"inputs of shape {list(x.shape)} do not fit a packed recurrent layer of {self.input_size} features; "
                "give [time, batch, features], batch first if the layer says so, or [time, features]"
            )
        self._check(x)
        batched, first = x.dim() == 3, self.batch_first and x.dim() == 3
        given = x if batched else x.unsqueeze(1)
        if not batched and hx is not None:
            hx = hx.unsqueeze(1) if isinstance(hx, Tensor) else tuple(state.unsqueeze(1) for state in hx)
        time, batch = (given.shape[1], given.shape[0]) if first else (given.shape[0], given.shape[1])
        states = states_of(hx, given, self._shapes(batch))
        if time == 1:
            y, states = self._one_step(given.reshape(batch, -1), states)
            y = y.unsqueeze(1 if first else 0)
        else:
            y, states = self._whole(given, first, states)
        if not batched:
            y, states = y.squeeze(1), tuple(state.squeeze(1) for state in states)
        return y, states if self.mode == "LSTM" else states[0]

    def _of_packed(self, x: PackedSequence, hx: "Tensor | State | None") -> Any:
        self._check(x.data)
        states = states_of(hx, x.data, self._shapes(int(x.batch_sizes[0])))
        if hx is not None and x.sorted_indices is not None:
            states = tuple(state.index_select(1, x.sorted_indices) for state in states)
        y, states = self._whole(x.data, x.batch_sizes, states)
        if x.unsorted_indices is not None:
            states = tuple(state.index_select(1, x.unsorted_indices) for state in states)
        made = PackedSequence(y, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return made, states if self.mode == "LSTM" else states[0]

    def _shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Of the states."""
        count, width = self.num_layers * (1 + self.bidirectional), self.proj_size or self.hidden_size
        shapes = ((count, batch, width), (count, batch, self.hidden_size))
        return shapes if self.mode == "LSTM" else shapes[:1]

    def _suffixes(self, layer: int) -> list[str]:
        """Ends of the names of weights, by direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: 1 + self.bidirectional]

    def _one_step(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        """x [batch, features], from the packed matrices."""
        ends: list[State] = []
        for layer in range(self.num_layers):
            made = []
            for suffix in self._suffixes(layer):
                own = tuple(state[len(ends)] for state in states)
                made.append(self._step(self.mode, suffix, x, own))
                ends.append(made[-1])
            x = torch.cat([state[0] for state in made], -1)
        return x, tuple(torch.stack(kind) for kind in zip(*ends, strict=True))

    def _whole(self, x: Tensor, form: Tensor | bool, states: State) -> tuple[Tensor, State]:
        """Whole sequences, the matrices of a layer restored while it runs. form: whether the batch comes first, or the
        batches of a packed sequence."""
        ends, each = [], 1 + self.bidirectional
        for layer in range(self.num_layers):
            own = tuple(state[layer * each : (layer + 1) * each].contiguous() for state in states)
            begin: Any = own if self.mode == "LSTM" else own[0]
            weights = [w.to(x.dtype) for suffix in self._suffixes(layer) for w in self._restored(suffix)]
            numbers = (bool(self.bias), 1, 0.0, False, bool(self.bidirectional))
            if isinstance(form, Tensor):
                x, *last = FUSED[self.mode](x, form, begin, weights, *numbers)
            else:
                x, *last = FUSED[self.mode](x, begin, weights, *numbers, form)
            ends.append(last)
        return x, tuple(torch.cat(kind) for kind in zip(*ends, strict=True))

    def _restored(self, suffix: str) -> Iterator[Tensor]:
        """The weights of a layer in one direction, in the order that PyTorch's functions take."""
        for kind in ("ih", "hh"):
            term = self.matrices[f"weight_{kind}{suffix}"]
            assert isinstance(term, Term)  # all are
            yield term.block(0, term.rows)
        for kind in ("ih", "hh") if self.bias else ():
            yield self._parameters[f"bias_{kind}{suffix}"]  # type: ignore[misc]  # which is there where it says so
        if f"weight_hr{suffix}" in self.matrices:
            term = self.matrices[f"weight_hr{suffix}"]
            assert isinstance(term, Term)  # all are
            yield term.block(0, term.rows)
