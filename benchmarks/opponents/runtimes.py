"""The quantizers that runtimes bring along, each on the dense graph of a network: (model of ONNX, inputs, path)."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

GROUP = 32


def onnx_static(model: Any, inputs: list[Tensor], path: Path) -> None:
    """ONNX Runtime's static quantization: int8 weights by channel, int8 inputs whose ranges the batches show."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = model.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch.contiguous().numpy()}

    settings = {"per_channel": True, "weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    with _quiet():
        dense = _prepared(model, path)
        quantize_static(dense, os.fspath(path), Reader(), quant_format=QuantFormat.QDQ, **settings)


def onnx_dynamic(model: Any, inputs: list[Tensor], path: Path) -> None:
    """ONNX Runtime's dynamic quantization: int8 weights, inputs rounded as they come."""
    from onnxruntime.quantization import quantize_dynamic

    with _quiet():
        quantize_dynamic(_prepared(model, path), os.fspath(path))


def onnx_matmul(model: Any, inputs: list[Tensor], path: Path) -> None:
    """ONNX Runtime's rounding to nearest of products (and look-ups), 4 bits, symmetric, groups of 32."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        dense = onnx.load(_prepared(model, path))
        settings = {"block_size": GROUP, "is_symmetric": True, "op_types_to_quantize": ("MatMul", "Gather")}
        made = MatMulNBitsQuantizer(dense, **settings)
        made.process()
    onnx.save(made.model.model, path)


def nncf_weights(model: Any, inputs: list[Tensor], path: Path) -> None:
    """nncf's compression of weights for OpenVINO: int4 in groups of 32, or int8 where there are convolutions alone."""
    import nncf
    import openvino

    with _quiet():
        dense = openvino.Core().read_model(model.SerializeToString())
        convolutions = any(node.op_type == "Conv" for node in model.graph.node)
        four = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": GROUP, "all_layers": True, "ratio": 1.0}
        how = {"mode": nncf.CompressWeightsMode.INT8_SYM} if convolutions else four
        openvino.save_model(nncf.compress_weights(dense, **how), os.fspath(path), compress_to_fp16=False)


def _prepared(model: Any, path: Path) -> str:
    """The dense network in a file, its constants folded as these tools want them."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    dense, ready = path.with_suffix(".dense.onnx"), path.with_suffix(".ready.onnx")
    onnx.save(model, dense)
    try:
        quant_pre_process(os.fspath(dense), os.fspath(ready), skip_symbolic_shape=True)
    except Exception:  # what it cannot prepare goes as it is
        return os.fspath(dense)
    return os.fspath(ready)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
