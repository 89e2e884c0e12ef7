"""Puts layers that run from compressed weights into a network of the user's own class."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from waterfill.arithmetic import own_arithmetic
from waterfill.errors import BadInput
from waterfill.model.compressed import CompressedModel
from waterfill.model.entry import Entry
from waterfill.model.install import check_fits, install, make_room, tied_names
from waterfill.model.lazy import CompressedTensors
from waterfill.network.layout import Layout
from waterfill.network.running.wrapped import holder
from waterfill.runtime.decoder.layers import shorten
from waterfill.runtime.layers.base import PackedLayer
from waterfill.runtime.layers.linear import PackedLinear
from waterfill.runtime.layers.stack import PackedStack
from waterfill.runtime.leaves import Term
from waterfill.runtime.measured.fastest import DENSE, Fastest, in_form
from waterfill.runtime.packing.settle import settle
from waterfill.runtime.packing.sites import is_conv1d, layers_of, packed, unfit, weights_of
from waterfill.runtime.packing.stacks import packed_stack, put_stack, stacks_of
from waterfill.runtime.packing.table import WHY
from waterfill.runtime.terms import WholeTerm, term_of
from waterfill.storage import FileReader

_BYTES = {8: 1, 16: 2, 24: 3}


def pack(
    compressed: "CompressedModel | str | Path",
    model: nn.Module,
    *,
    input_bits: int = 16,
    batch: "int | Fastest | None" = None,
    large: int | None = None,
) -> nn.Module:
    """Put a compressed network into a module so that its layers run from the compressed weights.

    Linear layers (`Conv1D` of transformers too), embeddings, convolutions and recurrent layers keep small codes, values
    of a table, sparse entries and thin factors in memory. Few inputs multiply from there; for many, for convolutions
    and for sequences, blocks of rows are restored as they are needed. All else gets its restored weights, as `install`
    does: `table` says what and why.
    A packed network does not learn. It can be moved, copied, compiled and exported, and its `state_dict` holds plain
    tensors.

    Args:
        compressed: the network, or the path of its file, which is then read one tensor at a time.
        model: a module of the user's own class; changed in place.
        input_bits: of the integers that the inputs of a layer are rounded to while it multiplies, 8, 16 or 24. 16 keeps
            outputs to about four digits, unless an input is a thousand times as large as the others; 24 keeps those of
            float32; 8 is faster, and its loss is to be measured.
        batch: None to pack all that can be packed; or inputs at a time, for which each linear layer is timed, packed
            and dense, and the faster form stays: once for a machine, see the guide. `runtime.Fastest` names several
            numbers of inputs and other forms.
        large: inputs at a time from which layers multiply as floats instead of integers; None for the number from
            which that is faster, measured once on this machine. Outputs of fewer inputs are the same on every machine;
            those of more may differ in their last bits.

    Returns:
        The module, its parameters frozen; in the place of one that is a single layer, the packed layer, and in that of
        one of PyTorch's wrappers (`torch.compile`, `DataParallel`) the network that it holds.

    Raises:
        Mismatch: names or shapes that differ.
        BadInput: other input_bits, batch or large, or what is no module.
        CorruptFile, NewerFormat, OSError: of the file.

    Example:
        >>> net = waterfill.pack("net.wf", Net())
        >>> print(waterfill.runtime.table(net))
    """
    size = input_bytes(input_bits)
    _check(compressed, model, batch=1 if isinstance(batch, Fastest) else batch, large=large)
    measured = batch if isinstance(batch, Fastest) or batch is None else Fastest((batch,))

    def packing(notes: Mapping[str, Any], names: Mapping[str, Any], aliases: Mapping[str, str]) -> _Packing:
        network = holder(model, names)
        make_room(network, notes, _shapes(names, aliases))
        return _Packing(network, size, measured, large or 0)

    if isinstance(compressed, CompressedModel):
        work = packing(compressed.notes, compressed.entries, compressed.aliases)
        return work.run(compressed.entries, compressed.aliases, lambda name: compressed.entries[name])
    with FileReader(compressed) as src:
        tensors = CompressedTensors(src)
        work = packing(tensors.manifest.notes, tensors.layouts, tensors.aliases)
        return work.run(tensors.layouts, dict(tensors.aliases), tensors.entry)


class Named(Protocol):
    """Tensors by the names that a module has for them: how each is laid out, tied names, and each as parts."""

    @property
    def layouts(self) -> Mapping[str, Layout]: ...

    @property
    def aliases(self) -> Mapping[str, str]: ...

    def entry(self, name: str) -> Entry: ...


def input_bytes(input_bits: int) -> int:
    """Bytes of an input as an integer. Raises BadInput for other bits than those of `pack`."""
    if not isinstance(input_bits, int) or input_bits not in _BYTES:
        raise BadInput(f"input_bits={input_bits!r} is none of 8, 16 and 24")
    return _BYTES[input_bits]


def pack_named(source: Named, model: nn.Module, *, dense: Mapping[str, Tensor], input_bits: int = 16) -> nn.Module:
    """As `pack`, where some tensors of the module are not in the file as they are: `dense` has these by name."""
    work = _Packing(model, input_bytes(input_bits), None, 0, dict(dense))
    return work.run(source.layouts, source.aliases, source.entry)


@dataclass
class _Packing:
    """One network on its way. size: bytes of an input. fastest: how layers choose their form, None for packed ones.
    large: as for `pack`, 0 for None.

    dense: tensors that are not in the file.
    """

    model: nn.Module
    size: int
    fastest: Fastest | None
    large: int
    dense: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[tuple[str, bool], Term] = field(default_factory=dict)
    found: dict[int, dict[str, "Term | str"]] = field(default_factory=dict)
    stacks: dict[str, "PackedStack | str"] = field(default_factory=dict)

    def run(self, names: Mapping[str, Any], aliases: Mapping[str, str], entry: Callable[[str], Entry]) -> nn.Module:
        """The network. names: of the tensors that `entry` gives, tied ones once; aliases: tied names."""
        owners = {name: name for name in names} | dict(aliases)
        shapes = {name: tuple(value.shape) for name, value in self.dense.items()}
        check_fits(self.model, shapes | _shapes(names, aliases))
        owners |= tied_names(self.model, owners)
        layers = list(layers_of(self.model))
        users: dict[str, list[tuple[str, nn.Module]]] = {}
        for name, layer in layers:
            for weight in weights_of(layer):
                full = f"{name}.{weight}" if name else weight
                if full in owners:  # which it is not where a hook computes the weight
                    users.setdefault(owners[full], []).append((weight, layer))
        tensors: dict[str, Tensor] = {}
        uses = Counter(owners.values())
        stacks = {name: (module, own) for name, module, own in stacks_of(self.model) if uses[name] == 1}
        with own_arithmetic():
            for own in names:
                found = entry(own)
                if own in stacks:
                    self.stacks[own] = packed_stack(found, *stacks[own], self.size)
                if isinstance(self.stacks.get(own, ""), str) and not self._pack(found, users.get(own, [])):
                    tensors[own] = found.tensor()
            made = {id(layer): self._made(layer) for _, layer in layers}
            gone = _names(layers, made) | {own for own, stack in self.stacks.items() if not isinstance(stack, str)}
            kept = {name: own for name, own in owners.items() if name not in gone}
            tensors |= {own: entry(own).tensor() for own in kept.values() if own not in tensors}
        self._put(made)  # nothing is changed before everything is read
        for own, stack in self.stacks.items():
            put_stack(*stacks[own], stack)
        settle(self.model, self.large)
        wanted = {name: tensors[own] for name, own in kept.items()} | _packed_tensors(self.model)
        whole = install(self.model, self.dense | wanted).eval().requires_grad_(False)
        shorten(whole)
        return whole

    def _pack(self, entry: Entry, users: list[tuple[str, nn.Module]]) -> bool:
        """Finds the terms of a weight for its layers; returns whether all of them may do without its tensor."""
        small = True
        for weight, layer in users:
            found = self._term(entry, weight, layer)
            self.found.setdefault(id(layer), {})[weight] = found
            small = small and isinstance(found, Term) and not isinstance(found, WholeTerm)
        return small and bool(users)

    def _term(self, entry: Entry, weight: str, layer: nn.Module) -> "Term | str":
        """The term of a weight for a layer, or why there is none."""
        why = unfit(entry.layout, len(entry.parts), layer)
        if why:
            return why
        key = (entry.name, is_conv1d(layer))
        if key not in self.terms:
            product, held = entry.parts[0].product(), getattr(layer, weight)
            made = term_of(product.transposed() if key[1] else product, self.size)
            self.terms[key] = made if held.is_meta else made.to(held.device)
        return self.terms[key]

    def _made(self, layer: nn.Module) -> "PackedLayer | str":
        """The layer in packed form, or why it stays."""
        found = self.found.get(id(layer), {})
        terms = {name: term for name, term in found.items() if isinstance(term, Term)}
        if not found or len(terms) < len(weights_of(layer)):
            return next((term for term in found.values() if isinstance(term, str)), "its weights are computed")
        if all(isinstance(term, WholeTerm) for term in terms.values()):
            return next(term.reason for term in terms.values() if isinstance(term, WholeTerm))
        made = packed(terms, layer)
        if self.fastest is None or not isinstance(made, PackedLinear):
            return made
        form, why = self.fastest.chosen(made.term, layer.weight)  # type: ignore[arg-type]  # a linear layer has one
        if form == DENSE:
            return why
        made.term = in_form(made.term, form, layer.weight.dtype)  # type: ignore[arg-type]
        setattr(made, WHY, why)
        return made

    def _put(self, made: "Mapping[int, PackedLayer | str]") -> None:
        """Set packed layers in the places of others, wherever these are, or note why they stay."""
        for module in list(self.model.modules()):
            for name, child in list(module._modules.items()):
                new = made.get(id(child))
                if isinstance(new, PackedLayer):
                    setattr(module, name, new)
                elif new is not None and child is not None:
                    setattr(child, WHY, new)
        new = made.get(id(self.model))
        if isinstance(new, PackedLayer):
            self.model = new
        elif new is not None:
            setattr(self.model, WHY, new)


def _packed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a packed network has in its state beside tensors of the file."""
    modules = model.named_modules(remove_duplicate=False)
    layers = tuple(f"{name}." if name else "" for name, module in modules if isinstance(module, PackedLayer))
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = model.state_dict() if layers else {}
    return {name: value for name, value in state.items() if name.startswith(layers) and name not in known}


def _names(layers: list[tuple[str, nn.Module]], made: "Mapping[int, PackedLayer | str]") -> set[str]:
    """The names of the weights that are packed."""
    packed_layers = [(name, layer) for name, layer in layers if not isinstance(made[id(layer)], str)]
    return {f"{name}.{weight}" if name else weight for name, layer in packed_layers for weight in weights_of(layer)}


def _check(compressed: Any, model: Any, **counts: Any) -> None:
    """Raises BadInput for arguments that are no network and no file, and for a network that is packed."""
    if not isinstance(compressed, CompressedModel | str | Path):
        raise BadInput(f"what is packed is a compressed network or the path of a .wf file, not {_called(compressed)}")
    if not isinstance(model, nn.Module):
        raise BadInput(f"a network is packed into a module, and this is {_called(model)}; give an instance of yours")
    for name, count in counts.items():
        if count is not None and not (type(count) is int and count >= 1):
            raise BadInput(f"{name}={count!r} is no number of inputs; give 1 or more, or None")
    if any(isinstance(module, PackedLayer) for module in model.modules()):
        raise BadInput("the module is packed already; build a new one of your class")


def _called(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _shapes(described: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, tied ones included, from their entries or layouts."""
    owners = {name: name for name in described} | dict(aliases)
    return {name: _shape(described[own]) for name, own in owners.items()}


def _shape(described: Any) -> tuple[int, ...]:
    """The shape of an entry, or of a layout."""
    shape: tuple[int, ...] = getattr(described, "layout", described).shape
    return shape
