"""What the file of a format holds beside the weights of a network: the graph, known before they are compressed."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from waterfill.errors import BadInput
from waterfill.export.how import extra
from waterfill.network.running.forward import copy_of


def beside(model: nn.Module, batches: Iterable[Any], to: str) -> int:
    """Bytes of a file of ONNX or OpenVINO that are no weights; 0 for formats that hold weights alone.

    For `Options.beside`, so that a budget is that of the whole file. The first batch is traced.

    Raises BadInput, CannotExport.

    Example:
        >>> options = Options(beside=waterfill.export.beside(net, batches, "onnx"))
        >>> small = waterfill.compress(net, batches, size=1_000_000, format="onnx", options=options)
    """
    measure = {"onnx": _of_onnx, "openvino": _of_openvino}.get(to)
    if measure is None:
        return 0
    batch = next(iter(batches), None)
    if batch is None:
        raise BadInput("there are no batches, and one is run to see what the network computes")
    extra("onnx", f"a file of {to}")
    from waterfill.export.onnx.trace import traced

    dense = copy_of(model).float().cpu().eval().requires_grad_(False)
    once = {value.data_ptr(): value for value in dense.state_dict().values()}
    weights = sum(4 * value.numel() for value in once.values())
    return max(0, measure(traced(dense, batch)) - weights)


def _of_onnx(proto: Any) -> int:
    from waterfill.export.onnx.graph import Graph

    return int(Graph(proto).finish().ByteSize())


def _of_openvino(proto: Any) -> int:
    library = extra("openvino", "a file of OpenVINO")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.xml"
        library.save_model(
            library.Core().read_model(proto.SerializeToString()), os.fspath(path), compress_to_fp16=False
        )
        return sum(each.stat().st_size for each in Path(folder).iterdir())
