"""Folds batch norms into the layers that feed them: the same function, with three of four vectors constant.

Running the network shows which norm follows which layer; the change of the tensors is in `folds`.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.errors import BadInput
from waterfill.network.folds import TENSORS, folded_tensors, touched
from waterfill.network.running.batches import never, tensor_in
from waterfill.network.running.forward import Forward, as_deployed, call, copy_of, hooked
from waterfill.storage.folds import Fold

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *_CONV, *_TRANSPOSED)
"""Layers whose outputs are products of one weight with their inputs, and maybe a bias."""
_CLOSE = 1e-4  # relative; rounding stays far below, a pair that must not be folded far above


@by_own_arithmetic
def fold_batch_norm(module: nn.Module, *batches: Any, forward: Forward | None = None) -> nn.Module:
    """A copy of the module in which every batch norm fed by a linear layer or convolution is folded into it.

    The copy has the same names and shapes, so the user's own class loads it: weights (and biases) are scaled, a folded
    norm keeps weight 1, mean 0, variance 1 - eps, and as its bias the shift, if the layer has none to take it. Pairs
    are found by running the batches: a norm is fed by a layer if its input is the layer's output, unchanged, in every
    batch in which either runs. A pair that would change the outputs of any batch (its layer feeds others too) is left
    as it is. Give batches of every size, mode and path that the network has.
    For evaluation mode: statistics of a folded norm must not be trained on. Outputs stay the same but for rounding.
    Raises BadInput for a batch that the model cannot take, or none.
    """
    if not batches:
        raise BadInput("there are no batches, and by running some it is found which norm follows which layer")
    folded = copy_of(module)
    fold_in_place(folded, batches, forward)
    return folded


def fold_in_place(
    model: nn.Module, batches: Iterable[Any], forward: Forward | None = None, fixed: Container[str] = ()
) -> None:
    """`fold_batch_norm` in the model itself; the batches are gone through several times.

    fixed: names of tensors that must not change; norms are not folded where these would.
    """
    with as_deployed(model):
        fed = _always_fed(model, batches, forward)
        pairs = {norm: layer for norm, layer in fed.items() if not _holds(fixed, norm, layer)}
        original = copy_of(model) if pairs else model
        undo = [_fold(model, norm, layer) for norm, layer in pairs.items()]
        with as_deployed(original):
            if _alike(model, original, batches, forward):
                return
            for restore in reversed(undo):
                restore.back()
            for norm, layer in pairs.items():
                one = _fold(model, norm, layer)
                if not _alike(model, original, batches, forward):
                    one.back()


def _holds(fixed: Container[str], *layers: str) -> bool:
    """Whether a tensor of these layers is one of those."""
    return any(f"{layer}.{key}" in fixed for layer in layers for key in TENSORS)


def _always_fed(model: nn.Module, batches: Iterable[Any], forward: Forward | None) -> dict[str, str]:
    """The pairs that `fed_norms` finds in every batch in which the norm or the layer runs."""
    pairs: dict[str, str] = {}
    broken: set[str] = set()
    for batch in batches:
        fed, ran = _fed_norms(model, batch, forward)
        broken |= {norm for norm, layer in fed.items() if pairs.setdefault(norm, layer) != layer}
        broken |= ran - fed.keys() - set(fed.values())
    return {norm: layer for norm, layer in pairs.items() if not {norm, layer} & broken}


def fed_norms(model: nn.Module, batch: Any, forward: Forward | None = None) -> dict[str, str]:
    """Batch norms with statistics, and the layer whose output each of them takes as it is; both run once a pass."""
    return _fed_norms(model, batch, forward)[0]


def _fed_norms(model: nn.Module, batch: Any, forward: Forward | None) -> tuple[dict[str, str], set[str]]:
    """The pairs, and all layers and norms that ran."""
    modules = {name: m for name, m in model.named_modules() if isinstance(m, (*LAYERS, *BATCH_NORM))}
    outputs: dict[int, tuple[str, Tensor, int]] = {}
    runs: dict[str, int] = {}
    pairs: dict[str, str] = {}

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        tensor = tensor_in(output)
        if isinstance(module, LAYERS) and tensor is not None:
            outputs[id(tensor)] = (name, tensor, _version(tensor))  # kept alive, so that no other tensor gets its id
        elif isinstance(module, BATCH_NORM) and module.track_running_stats and inputs:
            layer, _, version = outputs.get(id(inputs[0]), ("", None, -1))
            if layer and _version(inputs[0]) == version and _channels_fit(modules[layer], inputs[0]):
                pairs[name] = layer

    with as_deployed(model), hooked(modules, record):
        call(model, batch, forward)
    shared = {layer for layer in pairs.values() if list(pairs.values()).count(layer) > 1}
    once = {norm: layer for norm, layer in pairs.items() if layer not in shared}
    return {norm: layer for norm, layer in once.items() if runs[norm] == 1 and runs[layer] == 1}, set(runs)


def _version(value: Tensor) -> int:
    """How often a tensor was written to; 0 for those made in torch.inference_mode, which have no count."""
    return 0 if value.is_inference() else value._version


def _channels_fit(layer: nn.Module, output: Tensor) -> bool:
    """Whether dimension 1, which a batch norm scales, is the layer's output channels, each with a slice of weights."""
    if isinstance(layer, nn.Linear):
        return output.ndim == 2
    return not (isinstance(layer, _TRANSPOSED) and layer.groups > 1)


def output_axis(layer: nn.Module) -> int:
    """The output channel dimension of the weight."""
    return 1 if isinstance(layer, _TRANSPOSED) else 0


def along(values: Tensor, axis: int, ndim: int) -> Tensor:
    """A vector [channels] shaped to stand at one dimension of `ndim`."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def folds_between(before: nn.Module, after: nn.Module) -> list[Fold]:
    """Which norms of a module were folded into which of its layers to make another, found from their tensors."""
    was, now = (
        {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        for module in (before, after)
    )
    changed = [name for name, value in was.items() if not torch.equal(value, now[name])]
    modules = {name: before.get_submodule(name) for name in dict.fromkeys(n.rpartition(".")[0] for n in changed)}
    left = [name for name, module in modules.items() if isinstance(module, LAYERS) and f"{name}.weight" in was]
    folds_made = []
    for norm, module in modules.items():
        if isinstance(module, BATCH_NORM):
            folds = (Fold(norm, layer, module.eps, output_axis(modules[layer]) == 1) for layer in left)
            fold = next((fold for fold in folds if _explains(fold, was, now)), None)
            if fold is not None:
                left.remove(fold.layer)
                folds_made.append(fold)
    return folds_made


def _explains(fold: Fold, was: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    """Whether a fold gives exactly the tensors afterwards."""
    weight = was[f"{fold.layer}.weight"]
    if weight.shape[fold.transposed] != was[f"{fold.norm}.running_var"].numel():
        return False
    vectors = {name: was[name] for name in touched(fold)[1:] if name in was}
    rows, changed = (v.movedim(int(fold.transposed), 0).flatten(1) for v in (weight, now[f"{fold.layer}.weight"]))
    for columns in (slice(0, 1), slice(None)):  # one column distinguishes most pairs
        own, other = rows[:, columns], changed[:, columns]
        after = folded_tensors({**vectors, f"{fold.layer}.weight": own}, replace(fold, transposed=False))
        if not torch.equal(after.pop(f"{fold.layer}.weight"), other):
            return False
    return all(torch.equal(value, now[name]) for name, value in after.items())


@dataclass(frozen=True)
class _Undo:
    """Tensors and what was in them."""

    before: list[tuple[Tensor, Tensor]]

    def back(self) -> None:
        for tensor, value in self.before:
            tensor.copy_(value)


@torch.no_grad()
def _fold(model: nn.Module, norm_name: str, layer_name: str) -> _Undo:
    """Fold one norm in place."""
    norm: Any = model.get_submodule(norm_name)
    layer: Any = model.get_submodule(layer_name)
    touched = [layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var]
    undo = _Undo([(tensor, tensor.detach().clone()) for tensor in touched if tensor is not None])
    fold = Fold(norm_name, layer_name, norm.eps, output_axis(layer) == 1)
    named = ((norm_name, norm), (layer_name, layer))
    own = {f"{name}.{key}": getattr(module, key, None) for name, module in named for key in TENSORS}
    given = {name: value for name, value in own.items() if value is not None}
    for name, value in folded_tensors(given, fold).items():
        given[name].copy_(value)
    return undo


def _alike(model: nn.Module, original: nn.Module, batches: Iterable[Any], forward: Forward | None) -> bool:
    """Whether two networks agree on every batch but for rounding, each in the scale of its own outputs."""
    return all(nearly_equal(call(model, b, forward), call(original, b, forward)) for b in batches)


def nearly_equal(actual: Tensor, expected: Tensor) -> bool:
    """Whether outputs are the same but for rounding; masked ones do not count."""
    if actual.shape != expected.shape:
        return False
    hidden = never(expected)
    if not torch.equal(never(actual), hidden):
        return False
    a, b = (value.double().masked_fill(hidden, 0.0) for value in (actual, expected))
    return float((a - b).norm()) <= _close(expected.dtype) * float(b.norm())


def _close(dtype: torch.dtype) -> float:
    """The relative tolerance for accumulated rounding; larger for half-precision types."""
    return max(_CLOSE, 16 * torch.finfo(dtype).eps)
