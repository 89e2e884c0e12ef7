"""What flows between the nodes of a dense graph, as its inputs show it: the ranges by which it is rounded to 8 bits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from waterfill.errors import BadInput
from waterfill.export.how import extra
from waterfill.export.onnx.trace import inputs_of

_MOST = 1 << 16  # values that are kept of a tensor, of all batches
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_STEPS = 255


@dataclass(frozen=True)
class Range:
    """Values are (code - zero) step, a code from 0 to 255. step: float32."""

    step: float
    zero: int


def ranges_of(model: Any, names: Sequence[str], batches: Iterable[Any]) -> dict[str, Range]:
    """The range of least squared error of each named tensor of a graph, by a run of all batches in ONNX Runtime.

    Zero is a code, which padding needs. Raises BadInput for batches that are not of the graph's inputs, CannotExport
    where ONNX Runtime is missing.
    """
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    batches, run = list(batches), _runner(model, names)
    for batch in batches:
        for name, values in run(batch).items():
            seen[name].append(_some(values.reshape(-1), _MOST // len(batches)))
    return {name: _best(np.concatenate(values)) for name, values in seen.items()}


def values_of(model: Any, names: Sequence[str], batch: Any) -> dict[str, np.ndarray]:
    """Named tensors of a graph for a batch. Raises as `ranges_of`."""
    return _runner(model, names)(batch)


def _runner(model: Any, names: Sequence[str]) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function from a batch to named tensors of a graph."""
    runtime = extra("onnxruntime", "rounding inputs to 8 bits")
    wide = type(model).FromString(model.SerializeToString())
    known = {out.name for out in wide.graph.output} | {each.name for each in wide.graph.input}
    wide.graph.output.extend(extra("onnx", "").ValueInfoProto(name=name) for name in names if name not in known)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = [each.name for each in session.get_inputs()]
    asked = [name for name in names if name not in taken]

    def run(batch: Any) -> dict[str, np.ndarray]:
        fed = {name: value.detach().cpu().numpy() for name, value in zip(taken, inputs_of(batch), strict=False)}
        try:
            found = dict(zip(asked, session.run(asked, fed), strict=True)) | fed
        except Exception as error:  # ONNX Runtime has a class of its own for each status
            raise BadInput(f"the graph does not take a batch: {' '.join(str(error).split())[:200]}") from error
        return {name: found[name] for name in names}

    return run


def _some(values: np.ndarray, count: int) -> np.ndarray:
    """About so many of the values, the least and the greatest among them."""
    few = values[:: max(1, len(values) // max(count, 1))]
    return np.concatenate([few, [values.min(), values.max()]]).astype(np.float32)


def _best(values: np.ndarray) -> Range:
    """The range of least squared error, of some that are clipped."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if not np.isfinite([low, high]).all():
        raise BadInput("values that are not finite flow through the network: give inputs that it can take")
    if low == high:
        return Range(1.0, 0)

    def made(clip: float) -> Range:
        step = np.float32(clip * (high - low) / _STEPS)
        return Range(float(step), int(np.clip(np.rint(-clip * low / step), 0, _STEPS)))

    def lost(one: Range) -> float:
        codes = np.clip(np.rint(values / one.step) + one.zero, 0, _STEPS)
        return float(np.square((codes - one.zero) * one.step - values, dtype=np.float64).sum())

    return min(map(made, _CLIPS), key=lost)
