"""The dense graph of a network, as PyTorch's exporters make it from one run."""

import contextlib
import importlib.util
import inspect
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput, CannotExport
from waterfill.export.how import extra
from waterfill.network.running.batches import are_arguments, shapes, tensors_in
from waterfill.network.running.forward import as_deployed

_OPSET = 18
_BY_NAME = inspect.Parameter.VAR_POSITIONAL  # kinds of parameters before it have a place each
_LARGEST = (1 << 31) - (1 << 24)  # bytes of a file that protobuf can hold


def traced(model: nn.Module, batch: Any) -> Any:
    """The network as a model of ONNX, its parameters as initializers of the same names, in float32.

    The first dimension of every input may differ later on, and so may the second of integers [batch, sequence, ...].
    PyTorch's older exporter is tried first: it knows recurrent layers, and is there in every release; then the newer
    one, where onnxscript is installed. Raises CannotExport, with what neither of them can do; BadInput for a batch that
    is no tensors.
    """
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if size > _LARGEST:
        raise CannotExport(f"the dense network takes {size:,} bytes, and a file of ONNX holds less than 2 GB")
    args, names = _arguments(model, batch)
    try:
        with _quiet(), as_deployed(model):
            return _older(model, args, names)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, KeyError, IndexError) as error:
        first = error
    if importlib.util.find_spec("onnxscript") is not None and hasattr(torch.onnx, "ONNXProgram"):
        try:
            with _quiet(), as_deployed(model):
                return _newer(model, args, names)
        except Exception as error:  # an exporter wraps whatever the network's code raises
            raise _refused(model, first, error) from error
    raise _refused(model, first, None) from first


def _arguments(model: nn.Module, batch: Any) -> tuple[tuple[Tensor, ...], list[str]]:
    """The tensors of a batch in the order of the parameters of `forward`, and the names of these."""
    parameters = [name for name, each in inspect.signature(model.forward).parameters.items() if each.kind < _BY_NAME]
    if isinstance(batch, dict):
        args = {name: batch[name] for name in parameters if name in batch}
        if set(args) != set(batch) or list(args) != parameters[: len(args)]:
            raise BadInput(
                f"a batch of {', '.join(batch)} does not fill the first arguments of forward, "
                f"{', '.join(parameters[:5])}; "
                "wrap the network in one whose forward takes these alone"
            )
        values, names = tuple(args.values()), list(args)
    else:
        values = tuple(batch) if are_arguments(batch) else (batch,)
        names = [*parameters[: len(values)], *(f"input_{n}" for n in range(len(parameters), len(values)))]
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise BadInput(f"a batch of {shapes(batch)} is traced; give one of tensors alone: a tensor, a tuple or a dict")
    return values, names


def _axes(value: Tensor) -> dict[int, str]:
    """The dimensions that may differ later on."""
    axes = {0: "batch"} if value.ndim else {}
    return axes | ({1: "sequence"} if value.ndim > 1 and not value.is_floating_point() else {})


def _older(model: nn.Module, args: tuple[Tensor, ...], names: list[str]) -> Any:
    out = io.BytesIO()
    settings: dict[str, Any] = {"opset_version": _OPSET, "do_constant_folding": False, "input_names": names}
    settings["training"] = torch.onnx.TrainingMode.PRESERVE  # else norms are fused, and weights lose their names
    settings["dynamic_axes"] = {name: axes for name, value in zip(names, args, strict=True) if (axes := _axes(value))}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        settings["dynamo"] = False
    write: Any = torch.onnx.export  # newer releases say that they take paths alone
    write(model, args, out, **settings)
    return extra("onnx", "an export to ONNX").load_from_string(out.getvalue())


def _newer(model: nn.Module, args: tuple[Tensor, ...], names: list[str]) -> Any:
    dims = {name: torch.export.Dim(name) for name in ("batch", "sequence")}
    shaped = tuple({at: dims[word] for at, word in _axes(value).items()} for value in args)
    settings: dict[str, Any] = {"opset_version": _OPSET, "optimize": False, "verbose": False, "dynamo": True}
    try:
        program = torch.onnx.export(model, args, input_names=names, dynamic_shapes=shaped, **settings)
    except Exception:  # a network that takes one size only says so in many ways
        program = torch.onnx.export(model, args, input_names=names, **settings)
    return program.model_proto  # type: ignore[union-attr]  # it is a program with dynamo=True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block without what exporters print and log: advice for who writes the network."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _without_output():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """A block without what compiled code prints: an exporter that fails prints its graph, past Python's streams."""
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _refused(model: nn.Module, first: Exception, second: Exception | None) -> CannotExport:
    said = f"PyTorch cannot write a {type(model).__name__} as ONNX: {_line(first)}"
    if second is not None:
        return CannotExport(f"{said}; nor by its newer exporter: {_line(second)}")
    return CannotExport(f"{said}; its newer exporter may: install onnxscript (waterfill[export])")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def outputs_named(model: Any) -> list[str]:
    """The names of the outputs of a model of ONNX."""
    return [out.name for out in model.graph.output]


def inputs_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in order."""
    return list(tensors_in(batch))
