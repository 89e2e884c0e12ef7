"""Puts layers that run from compressed weights into a network of the user's own class."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from waterfill.arithmetic import own_arithmetic
from waterfill.errors import BadInput
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry
from waterfill.model.install import check_fits, install, tied_names
from waterfill.model.lazy import CompressedTensors
from waterfill.network.layout import MATRIX, Layout
from waterfill.runtime.layers import PackedEmbedding, PackedLayer, PackedLinear
from waterfill.runtime.leaves import Term
from waterfill.runtime.terms import WholeTerm, term_of
from waterfill.storage import FileReader

_RUNS = 7
"""Runs of which the median counts, when a layer is timed."""
_BYTES = {8: 1, 16: 2}
_WHY = "_waterfill_why"  # of a layer: why it stays, or how fast it is


def pack(
    compressed: "CompressedModel | str | Path", model: nn.Module, *, input_bits: int = 16, batch: int | None = None
) -> nn.Module:
    """Put a compressed network into a module so that its layers run from the compressed weights.

    Linear layers (`Conv1D` of transformers too) and embeddings keep small codes, sparse entries and thin factors in
    memory, and multiply from there. All else gets its restored weights, as `install` does: `table` says what and why.
    A packed network does not learn. It can be moved, copied, compiled and exported, and its `state_dict` holds plain
    tensors.

    Args:
        compressed: the network, or the path of its file, which is then read one tensor at a time.
        model: a module of the user's own class; changed in place.
        input_bits: of the integers that the inputs of a layer are rounded to while it multiplies, 16 or 8. 16 keeps
            outputs to about four digits; 8 is faster, and its loss is to be measured.
        batch: None to pack all that can be packed; or inputs at a time, for which each layer is timed once, packed
            and dense, and the faster one stays.

    Returns:
        The module, its parameters frozen; in the place of one that is a single layer, the packed layer.

    Raises:
        Mismatch: names or shapes that differ.
        BadInput: other input_bits, or what is no module.
        CorruptFile, NewerFormat, OSError: of the file.

    Example:
        >>> net = waterfill.pack("net.wf", Net())
        >>> print(waterfill.runtime.table(net))
    """
    if not isinstance(input_bits, int) or input_bits not in _BYTES:
        raise BadInput(f"input_bits={input_bits!r} is neither 16 nor 8")
    _check(compressed, model, batch)
    work = _Packing(model, _BYTES[input_bits], batch)
    if isinstance(compressed, CompressedModel):
        return work.run(compressed.entries, compressed.aliases, lambda name: compressed.entries[name])
    with FileReader(compressed) as src:
        tensors = CompressedTensors(src)
        return work.run(tensors.layouts, dict(tensors.aliases), tensors.entry)


class Named(Protocol):
    """Tensors by the names that a module has for them: how each is laid out, tied names, and each as parts."""

    @property
    def layouts(self) -> Mapping[str, Layout]: ...

    @property
    def aliases(self) -> Mapping[str, str]: ...

    def entry(self, name: str) -> Entry: ...


def pack_named(source: Named, model: nn.Module, *, dense: Mapping[str, Tensor], input_bits: int = 16) -> nn.Module:
    """As `pack`, where some tensors of the module are not in the file as they are: `dense` has these by name."""
    return _Packing(model, _BYTES[input_bits], None, dict(dense)).run(source.layouts, source.aliases, source.entry)


@dataclass
class _Packing:
    """One network on its way. size: bytes of an input. batch: as for `pack`. dense: tensors that are not compressed."""

    model: nn.Module
    size: int
    batch: int | None
    dense: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[tuple[str, bool], Term] = field(default_factory=dict)
    faster: dict[Any, tuple[bool, str]] = field(default_factory=dict)
    made: list[tuple[nn.Module, "PackedLayer | str"]] = field(default_factory=list)

    def run(self, names: Mapping[str, Any], aliases: Mapping[str, str], entry: Callable[[str], Entry]) -> nn.Module:
        """The network. names: of the tensors that `entry` gives, tied ones once; aliases: tied names."""
        owners = {name: name for name in names} | dict(aliases)
        shapes = {name: tuple(value.shape) for name, value in self.dense.items()}
        check_fits(self.model, shapes | {name: _shape(names[own]) for name, own in owners.items()})
        owners |= tied_names(self.model, owners)
        users: dict[str, list[tuple[str, nn.Module]]] = {}
        for name, layer in layers_to_pack(self.model):
            if name in owners:  # which it is not where a hook computes the weight
                users.setdefault(owners[name], []).append((name, layer))
        tensors = dict(self.dense)
        with own_arithmetic():
            for own in names:
                found = entry(own)
                packed_names = self._pack(found, users.get(own, []))
                kept = [name for name, of in owners.items() if of == own and name not in packed_names]
                if kept:
                    tensors |= dict.fromkeys(kept, found.tensor())
        for layer, found_form in self.made:  # nothing is changed before everything is read
            self._put(layer, found_form)
        _leave_fast_path(self.model)
        terms = {f"{name}." for name, module in self.model.named_modules() if isinstance(module, Term)}
        inner = {name: value for name, value in self.model.state_dict().items() if name.startswith(tuple(terms))}
        return install(self.model, tensors | (inner if terms else {})).eval().requires_grad_(False)

    def _pack(self, entry: Entry, users: list[tuple[str, nn.Module]]) -> set[str]:
        """Packs the layers of a weight; returns the names of the weights of those that could be."""
        done: dict[int, PackedLayer | str] = {}
        for _, layer in users:
            if id(layer) not in done:
                done[id(layer)] = self._packed(entry, layer)
                self.made.append((layer, done[id(layer)]))
        return {name for name, layer in users if not isinstance(done[id(layer)], str)}

    def _put(self, layer: nn.Module, made: "PackedLayer | str") -> None:
        """Set a packed layer in the place of another, wherever that is, or note why it stays."""
        if isinstance(made, str):
            setattr(layer, _WHY, made)
        elif layer is self.model:
            self.model = made
        else:
            for module in list(self.model.modules()):
                for name, child in list(module._modules.items()):
                    if child is layer:
                        setattr(module, name, made)

    def _packed(self, entry: Entry, layer: nn.Module) -> "PackedLayer | str":
        """The layer in packed form, or why it stays."""
        if entry.layout.role != MATRIX or len(entry.parts) != 1 or entry.layout.dtype.is_complex:
            return "no matrix of real numbers"
        turned = _is_conv1d(layer)
        key = (entry.name, turned)
        if key not in self.terms:
            product = entry.parts[0].product()
            weight: Tensor = layer.weight  # type: ignore[assignment]  # all of these layers have one
            made = term_of(product.transposed() if turned else product, self.size)
            self.terms[key] = made if weight.is_meta else made.to(weight.device)
        term = self.terms[key]
        if isinstance(term, WholeTerm):
            return term.reason
        if isinstance(layer, nn.Embedding):
            return PackedEmbedding(term, layer)
        linear = PackedLinear(term, layer, turned=turned)
        if self.batch is not None:
            quicker, times = self._timed(term, layer)
            setattr(linear, _WHY, times)
            return linear if quicker else f"dense is faster: {times}"
        return linear

    def _timed(self, term: Term, layer: nn.Module) -> tuple[bool, str]:
        """Whether a matrix is faster packed than dense, at the batch asked for, and the two times."""
        weight: Tensor = layer.weight  # type: ignore[assignment]  # all of these layers have one
        key = (term.rows, term.cols, term.words.partition(",")[0], weight.dtype)
        if key not in self.faster:
            device = torch.device("cpu") if weight.is_meta else weight.device
            x = torch.ones(self.batch or 1, term.cols, dtype=weight.dtype, device=device)
            dense = torch.ones(term.rows, term.cols, dtype=weight.dtype, device=device)
            with torch.inference_mode():
                own = _median(lambda: term(x))
                other = _median(lambda: nn.functional.linear(x, dense))
            self.faster[key] = own < other, f"{1e6 * own:.0f} µs packed, {1e6 * other:.0f} µs dense"
        return self.faster[key]


def _check(compressed: Any, model: Any, batch: Any) -> None:
    """Raises BadInput for arguments that are no network and no file, and for a network that is packed."""
    if not isinstance(compressed, CompressedModel | str | Path):
        raise BadInput(f"what is packed is a compressed network or the path of a .wf file, not {_called(compressed)}")
    if not isinstance(model, nn.Module):
        raise BadInput(f"a network is packed into a module, and this is {_called(model)}; give an instance of yours")
    if batch is not None and not (type(batch) is int and batch >= 1):
        raise BadInput(f"batch={batch!r} is no number of inputs; give 1 or more, or None to pack all that can be")
    if any(isinstance(module, PackedLayer) for module in model.modules()):
        raise BadInput("the module is packed already; build a new one of your class")


def _called(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def table(model: nn.Module) -> list[dict[str, Any]]:
    """How each linear layer, convolution, embedding and recurrent layer of a packed network runs.

    A row is a dict: name, runs ("packed" or "dense"), form, bytes in memory, and why or how fast where it is known.
    """
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            size = sum(v.numel() * v.element_size() for v in module.term.buffers())
            form, runs = module.term.words, "packed"
        elif isinstance(module, _KINDS) or _is_conv1d(module):
            size = sum(v.numel() * v.element_size() for v in module.parameters())
            form, runs = "restored weights", "dense"
        else:
            continue
        rows.append({"name": name, "runs": runs, "form": form, "bytes": size, "why": getattr(module, _WHY, "")})
    return rows


_KINDS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.RNNBase, nn.Bilinear)


def layers_to_pack(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that can be packed, by every name of their weights: PyTorch's own, not what inherits from them, has
    hooks or another forward pass, and not those whose weights are computed."""
    for name, module in model.named_modules(remove_duplicate=False):
        if parametrize.is_parametrized(module) or getattr(module, "weight", None) is None:
            continue
        changed = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        if (type(module) in (nn.Linear, nn.Embedding) or _is_conv1d(module)) and not changed:
            yield f"{name}.weight" if name else "weight", module


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is the `Conv1D` of transformers: x W + b."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def _leave_fast_path(model: nn.Module) -> None:
    """Transformer layers of PyTorch have a way of their own in evaluation mode, which reads the weights of their layers
    and would restore packed ones each time; where layers are packed, they go the way of all others."""
    packed = any(isinstance(module, PackedLayer) for module in model.modules())
    for module in model.modules() if packed else ():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # which says that there is no fast form of its activation


def _shape(described: Any) -> tuple[int, ...]:
    """The shape of an entry, or of a layout."""
    shape: tuple[int, ...] = getattr(described, "layout", described).shape
    return shape


def _median(action: Callable[[], object]) -> float:
    """Seconds of the median run."""
    action()
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return sorted(times)[_RUNS // 2]
