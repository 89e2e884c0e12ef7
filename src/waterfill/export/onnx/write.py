"""A compressed network as a file of ONNX."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.dtypes import dtype_name
from waterfill.errors import BadInput, CannotExport
from waterfill.export.how import How, Network, extra
from waterfill.export.onnx.graph import Graph
from waterfill.export.onnx.int8.convolutions import to_int8
from waterfill.export.onnx.int8.recurrent import to_dynamic
from waterfill.export.onnx.products import unfit
from waterfill.export.onnx.rewrite import rewrite
from waterfill.export.onnx.trace import inputs_of, traced
from waterfill.export.requantize import entries_of, relative_error
from waterfill.export.result import Exported, Row
from waterfill.export.source import Source
from waterfill.model.entry import Entry
from waterfill.model.install import install, make_room
from waterfill.network.running.forward import as_deployed, call, copy_of
from waterfill.part import Part
from waterfill.storage.atomic import AtomicFile
from waterfill.storage.paths import check_target

NAME = "onnx"


def can(part: Part) -> str | None:
    """Why a part is not multiplied from its small form; it is restored as the file is loaded then, and runs dense."""
    return unfit(part.product())


def write(source: Source, target: "str | Path", network: Network | None, how: How) -> Exported:
    """Write the file. Raises BadInput, CannotExport, Mismatch, OutputExists, CorruptFile, OSError."""
    check_target(target, how.force)
    extra("onnx", "an export to ONNX")
    model, batch = installed(source, network, NAME)
    proto = traced(model, batch)
    entries, losses = entries_of(source, how, unfit)
    rows, graph = _rewritten(proto, entries, network, how)
    rows = [Row(row.name, row.form, row.bytes, row.why, losses.get(row.name, 0.0)) for row in rows]
    rows += [
        Row(name, f"as it is, {dtype_name(source.layouts[own].dtype)}", len(graph.initializers[name].raw_data))
        for name, own in source.owners.items()
        if name in graph.initializers and name not in entries
    ]
    made = graph.finish()
    made.producer_name = "waterfill"
    with AtomicFile(os.fspath(target), force=how.force) as out:
        out.file.write(made.SerializeToString())
        size = out.finish()
    return Exported(Path(target), NAME, size, rows, difference(target, model, batch))


def _rewritten(proto: Any, entries: dict[str, Entry], network: Network | None, how: How) -> tuple[list[Row], Graph]:
    """The graph with its weights in small forms, and the rows of these."""
    dense = proto.SerializeToString() if how.activations else b""
    graph = Graph(proto, rounds=how.activations is not None)
    if not how.activations or network is None:
        return rewrite(graph, entries), graph
    whole = type(proto).FromString(dense)
    rows, plan = to_int8(graph, whole, entries, network.batches)
    rows += to_dynamic(graph, whole, entries, next(iter(network.batches)))
    done = {row.name for row in rows}
    others = rewrite(graph, {name: entry for name, entry in entries.items() if name not in done})
    others = [Row(row.name, row.form, row.bytes, plan.why.get(row.name, row.why)) for row in others]
    order = list(entries)
    return sorted([*rows, *others], key=lambda row: order.index(row.name)), graph


def installed(source: Source, network: Network | None, name: str) -> tuple[nn.Module, Any]:
    """A copy of the network with the restored weights, in float32, and the batch to trace.

    Raises BadInput, Mismatch.
    """
    if network is None:
        raise BadInput(f"{name} holds what a network computes: give the network and inputs (--network, --data)")
    batch = next(iter(network.batches), None)
    if batch is None:
        raise BadInput("there are no batches, and one is run to see what the network computes")
    model = copy_of(network.model)
    tensors = source.state_dict()
    make_room(model, source.notes, {key: tuple(value.shape) for key, value in tensors.items()})
    return install(model, tensors).float().cpu().eval().requires_grad_(False), batch


def difference(path: "str | Path", model: nn.Module, batch: Any) -> float | None:
    """How far the outputs of ONNX Runtime are from those of a network; None where it is not installed.

    Raises CannotExport where it cannot run the file.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    with as_deployed(model):
        wanted = call(model, batch)
    return relative_error(run(path, inputs_of(batch)), wanted)


def run(path: "str | Path", inputs: list[Tensor], threads: int = 1) -> Tensor:
    """The first outputs of a file for some inputs, by ONNX Runtime. Raises CannotExport."""
    runtime = extra("onnxruntime", "running a file of ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        fed = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=False)}
        return torch.from_numpy(session.run(None, fed)[0])
    except Exception as error:  # ONNX Runtime has a class of its own for each status
        line = " ".join(str(error).split())[:300]
        raise CannotExport(f"ONNX Runtime {runtime.__version__} cannot run {path}: {line}") from error
