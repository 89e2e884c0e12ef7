"""A network run on batches as it is: how a batch becomes arguments, what of the result are the outputs, and how batches
are held out."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import AsSet, own_arithmetic
from waterfill.errors import BadInput
from waterfill.network.running.batches import (
    _finite,
    are_arguments,
    each_tensor,
    is_plain,
    output_of,
    shapes,
    tensor_in,
    tensors_in,
)
from waterfill.network.running.plainly import plainly
from waterfill.network.running.state import same_draws, unchanged

Forward = Callable[[nn.Module, Any], Any]
"""(model, batch) -> the model's result, where a batch is not simply its arguments."""


Hook = Callable[[str, nn.Module, tuple[Any, ...], Any], Any]
"""(name, layer, inputs, output) -> a replacement of the output, or None."""


def call(model: nn.Module, batch: Any, forward: Forward | None = None, *, seed: int = 0) -> Tensor:
    """The outputs for one batch: a tensor is the argument, a tuple or list the arguments, a dict those by keyword.

    Of a result that is no tensor the outputs are its `logits`, else the first tensor of real numbers in it that is more
    than one number (a loss). Every run of a batch starts from the same random numbers, which the seed chooses, and the
    model gets a copy of the batch: what it writes into its inputs is lost, and, without gradients (see
    `unchanged`), what it writes into itself. Raises BadInput, the model's own error chained, for a batch that the model
    cannot take, and for outputs that hold NaN or infinities; minus infinity, a masked class, is allowed.
    """
    copied = each_tensor(batch, Tensor.clone)
    try:
        with nullcontext() if torch.is_grad_enabled() else unchanged(model), same_draws(batch, seed), plainly():
            outputs = output_of(result_of(model, copied, forward))
            if not torch.is_grad_enabled() and any(_same_memory(outputs, buffer) for buffer in model.buffers()):
                outputs = outputs.clone()  # a buffer that is about to be restored
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        if isinstance(error, BadInput) or "allocate memory" in str(error) or "out of memory" in str(error):
            raise
        message = str(error).splitlines()[0] if str(error) else ""
        message = (
            message
            if isinstance(error, RuntimeError | TypeError) and message
            else f"{type(error).__name__} {message}".strip()
        )
        raise BadInput(
            f"the model cannot take a batch of {shapes(batch)}: {message}{_advice(batch, model, message)}"
        ) from error
    return _finite(outputs)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return is_plain(a) and is_plain(b) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def result_of(model: nn.Module, own: Any, forward: Forward | None) -> Any:
    """The model's result, under the settings that `forward` was given with."""
    if isinstance(forward, AsSet):
        with forward.block():
            return result_of(model, own, forward.function)
    if forward is not None:
        return forward(model, own)
    if isinstance(own, Mapping):
        return model(**own)
    return model(*own) if are_arguments(own) else model(own)


def _advice(batch: Any, model: nn.Module, message: str) -> str:
    """Advice on a batch that the model cannot take."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    given = {t.dtype for t in tensors_in(batch) if t.is_floating_point()}
    if own is not None and ((given and given != {own}) or (not given and "dtype" in message)):
        return f"; the model computes in {own}: convert one of them, such as batch.to({own})"
    if are_arguments(batch) and len(batch) > 1:
        return "; a tuple is all arguments of the model: take labels away, or say forward=lambda model, b: model(b[0])"
    tensor = tensor_in(batch)
    return "" if tensor is not None else "; a batch is a tensor, a tuple of arguments or a dict of them by keyword"


def copy_of(model: nn.Module, *, sharing: bool = False) -> nn.Module:
    """A deep copy of the model; what runs left in it as part of a graph, such as a weight from a hook, too.

    sharing: whether its parameters are others in the same memory, which nobody may write to. Attributes that cannot be
    copied, such as a lock or an open file, are shared with the copy. Raises BadInput where one of them is, or holds,
    what is to be compressed.
    """
    owned = [value for module in model.modules() for value in vars(module).values()]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in _graphs(owned)}
    every = model.parameters() if sharing else ()  # those made in torch.inference_mode never have gradients
    plain = (parameter for parameter in every if type(parameter) is nn.Parameter and not parameter.is_inference())
    memo |= {id(value): nn.Parameter(value.detach(), value.requires_grad) for value in plain}
    with torch.inference_mode(False):
        try:
            return _in_one_piece(copy.deepcopy(model, dict(memo)))
        except Exception:  # __deepcopy__ and __reduce__ raise anything: the attribute is found below
            pass
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                if key not in ("_parameters", "_buffers", "_modules"):
                    _share(memo, value, f"{name}.{key}" if name else key)
        try:
            return _in_one_piece(copy.deepcopy(model, memo))
        except Exception as error:
            raise BadInput(
                f"the {type(model).__name__} cannot be copied, and a copy is what is worked on: "
                f"{type(error).__name__}: {error}; give its class a __deepcopy__"
            ) from error


def _in_one_piece(model: nn.Module) -> nn.Module:
    """The model, the weights of each recurrent layer on a GPU in one piece of memory again, as fast kernels need it."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return model


def _graphs(value: Any) -> Iterator[Tensor]:
    """Tensors that are part of a graph, in what attributes hold."""
    return (tensor for tensor in tensors_in(value) if not tensor.is_leaf)


def _share(memo: dict[int, Any], value: Any, name: str) -> None:
    """Share a value with the copy where it cannot be copied. Raises BadInput if it holds weights."""
    try:
        copy.deepcopy(value, dict(memo))
    except Exception as error:
        if isinstance(value, nn.Module | Tensor) or any(True for _ in tensors_in(value)):
            raise BadInput(
                f"{name!r} holds tensors and cannot be copied ({type(error).__name__}: {error}), but a copy of the "
                "model is what is worked on; take it out of the model, or give its class a __deepcopy__"
            ) from error
        memo[id(value)] = value


@contextmanager
def as_deployed(*models: nn.Module) -> Iterator[None]:
    """The models in evaluation mode, without gradients, torch.compile and the fast path of attention, which hide calls.

    Every submodule's own mode is restored after. The block leaves torch.inference_mode.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.inference_mode(False), torch.no_grad(), _eagerly(), _without_fast_path(), _with_gradients(models):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _with_gradients(models: tuple[nn.Module, ...]) -> Iterator[None]:
    """A block in which recurrent layers on a GPU have gradients in evaluation mode too, for which cuDNN has none."""
    layers = (module for model in models for module in model.modules() if isinstance(module, nn.RNNBase))
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = before and not any(p.is_cuda for layer in layers for p in layer.parameters())
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """A block in which PyTorch's attention makes the calls that its documentation names."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _eagerly() -> AbstractContextManager[Any]:
    """A block in which modules made by torch.compile run eagerly, from PyTorch 2.6 on."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # it takes seconds to import
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold parameters or statistics of their own, by name; the model itself only if it is one."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    }


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Hook) -> Iterator[None]:
    """A block in which `hook(name, module, inputs, output)` runs after every call of these layers.

    Calls with tensors that are no plain arrays of numbers (nested, sparse) are passed over.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():

            def after(module: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> Any:
                tensors = (*tensors_in(inputs), *tensors_in(output))
                with own_arithmetic():
                    return hook(name, module, inputs, output) if all(map(is_plain, tensors)) else None

            stack.callback(layer.register_forward_hook(after).remove)
        yield
