"""Exports beside what each runtime's own quantizer makes of the same network: bytes, quality, latency.

A case names the runtime, its quantizer, and the recipe that goes there, or a share of the other file's bytes as the
budget in that format. Quality is measured in the runtime itself, on data that nothing was calibrated with; latency by
turns, one input at a time, on one thread. ONNX Runtime's static quantizer gets 64 inputs, from which the ranges of
8-bit inputs here come too; weights were compressed without any. Packages that are missing are skipped. llama.cpp's
Q4_0 is the one of its Python package, which rounds as it does.

    python benchmarks/exports.py [--quick] [--only NAME] [--keep FILE]
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.calibration_data import SPARED, calibration_batches, model_of
from lib.common import Table, claim, claims_table, finish
from lib.networks import networks
from opponents.q4_0 import language_model
from opponents.runtimes import nncf_weights, onnx_dynamic, onnx_matmul, onnx_static
from torch import Tensor, nn

import waterfill
from waterfill.export import How, Network, beside, export
from waterfill.export.onnx.trace import traced
from waterfill.model.compressed import CompressedModel

RUNS = 31
NOISE = 1.1  # latencies on a machine with other work


@dataclass(frozen=True)
class Case:
    """One comparison. make: (dense graph, inputs, path) -> the opponent's file. spec: of what is exported; None for a
    budget in the format, of `share` of the opponent's bytes. activations: as of `How`."""

    network: str
    runtime: str
    opponent: str
    make: Callable[[Any, list[Tensor], Path], None]
    spec: str | None = None
    share: float = 1.0
    activations: int | None = None


_RECURRENT = "lstm: Quantize(bits=7); *: Quantize(bits=8)"
"""Products of 8-bit inputs with codes of 7 bits are exact on every processor; of 8 bits, not where these are added in
pairs of 16 bits."""
CASES = (
    Case("ResNet-20", "onnx", "static QDQ, int8", onnx_static, activations=8),
    Case("SqueezeNet 1.1", "onnx", "static QDQ, int8", onnx_static, activations=8),
    Case("LSTM 2x128", "onnx", "dynamic, int8", onnx_dynamic, _RECURRENT, activations=8),
    Case("LSTM 2x128", "onnx", "MatMulNBits RTN, 4 bits", onnx_matmul, "Quantize(bits=8)"),
    Case("Llama 260K", "onnx", "MatMulNBits RTN, 4 bits", onnx_matmul, "Quantize(bits=4, group=32)"),
    Case("Llama 260K", "openvino", "nncf, int4, groups of 32", nncf_weights, "Quantize(bits=8, group=32)"),
    Case("ResNet-20", "openvino", "nncf, int8", nncf_weights),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples")
    parser.add_argument("--only", default="", help="networks whose names begin so")
    parser.add_argument("--keep", type=Path, help="a file of rows that are done, to go on from")
    options = parser.parse_args()
    folder = Path(os.environ["WATERFILL_DATA"])
    rows, kept = [], _Kept(options.keep)
    with tempfile.TemporaryDirectory() as place:
        for case in CASES:
            missing = [name for name in _NEEDS[case.runtime] if importlib.util.find_spec(name) is None]
            if missing or not case.network.startswith(options.only):
                print(f"skipped: {case.network}, {case.opponent}{': needs ' + ', '.join(missing) if missing else ''}")
                continue
            names = [case.network, case.runtime, case.opponent]
            rows.append(kept.row(names, partial(compared, case, folder, Path(place), options.quick)))
            print(*rows[-1], flush=True)
    last = ["SmolLM2-135M", "gguf", "llama.cpp Q4_0"]
    if last[0].startswith(options.only) and (row := kept.row(last, partial(language_model, options.quick))):
        rows.append(row)
        print(*row, flush=True)
    columns = {"network": "", "runtime": "", "its quantizer": "", "metric": "", "float32": ".4g", "theirs": ".4g"}
    columns |= {
        "waterfill": ".4g",
        "their bytes": ",d",
        "bytes": ",d",
        "float32 ms": ".3f",
        "their ms": ".3f",
        "ms": ".3f",
    }
    tables = {"quality": Table("In the runtime's own format", columns, rows), "claims": claims_table(claims(rows))}
    how = {key: value for key, value in vars(options).items() if key != "keep"}
    some = any(value != parser.get_default(key) for key, value in how.items())
    finish("exports", tables, how, partial=some, shown=tables)


class _Kept:
    """Rows that are done, in a file if there is one, by their first columns."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[list[Any]] = json.loads(path.read_text()) if path and path.exists() else []

    def row(self, names: list[str], make: Callable[[], list[Any] | None]) -> list[Any]:
        """The row of these names, made where it is not there."""
        found = next((row for row in self.rows if row[: len(names)] == names), None) or make() or []
        if found and found not in self.rows:
            self.rows.append(found)
            if self.path:
                self.path.write_text(json.dumps(self.rows))
        return found


_NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "onnx", "nncf")}


def compared(case: Case, folder: Path, place: Path, quick: bool) -> list[Any]:
    """A row: quality, bytes and latency of both files."""
    network = networks(SPARED)[case.network]
    state = network.state(folder)
    model = model_of(case.network, folder, state)
    inputs = calibration_batches(case.network, folder, 64)
    first = inputs[0] if case.network == "Llama 260K" else inputs[0][:4]
    end = ".onnx" if case.runtime == "onnx" else ".xml"
    theirs, ours, dense = (place / f"{name}{end}" for name in ("theirs", "ours", "dense"))
    case.make(traced(model, first), inputs, theirs)
    export(waterfill.compress(model, lossless=True), dense, case.runtime, Network(model, [first]), How(force=True))
    made = compressed(case, model, first, _size(theirs))
    shown = inputs if case.activations else [first]
    export(made, ours, case.runtime, Network(model, shown), How(force=True, activations=case.activations))
    runners = [_runner(case.runtime, path) for path in (dense, theirs, ours)]
    qualities = [measured_in(runner, case.network, folder, quick) for runner in runners]
    sizes = [_size(path) for path in (theirs, ours)]
    named = [case.network, case.runtime, case.opponent, network.metric]
    return [*named, *qualities, *sizes, *latencies(runners, first[:1])]


def compressed(case: Case, model: nn.Module, first: Tensor, size: int) -> CompressedModel:
    """What is exported, to no more than `size` bytes."""
    if case.spec is not None:
        return waterfill.compress(model, spec=case.spec)
    graph = beside(model, [first], case.runtime)
    how = waterfill.Options(beside=graph, threads=1)
    return waterfill.compress(model, size=int(case.share * size), format=case.runtime, options=how)


class _Outside(nn.Module):
    """A network that runs in another runtime, as the measures of quality take it."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        return self.run(x)

    def load_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing: the weights are those of the file."""


def measured_in(run: Callable[[Tensor], Tensor], name: str, folder: Path, quick: bool) -> float:
    """The quality of a network that some runtime runs, on data that it was not calibrated with."""
    if name == "LSTM 2x128":
        return _characters(run, folder, quick)
    network = networks(SPARED)[name]
    found: list[Any] = []
    import lib.networks as measures

    whole = measures.by_outputs

    def outside(model: nn.Module, logits: Any, original: Any, score: Any, targets: Tensor | None = None) -> Any:
        found.append(score(logits(_Outside(run)).log_softmax(1)))
        return lambda _: None

    measures.by_outputs = outside  # type: ignore[assignment]  # the data, and how they are cut, are the same
    try:
        network.prepare(folder, network.state(folder), quick)
    finally:
        measures.by_outputs = whole
    return float(found[0])


def _characters(run: Callable[[Tensor], Tensor], folder: Path, quick: bool) -> float:
    """Bits per character in windows of 256 of the text's last tenth, the state zero at the start of each."""
    import json

    vocabulary = json.loads((folder / "shakespeare_charlstm_vocab.json").read_text("utf-8"))
    text = (folder / "tinyshakespeare.txt").read_text("utf-8")
    tail = text[int(0.9 * len(text)) :][: 20000 if quick else None]
    tokens = torch.tensor([vocabulary[c] for c in tail[: len(tail) // 257 * 257]]).view(-1, 257)
    lost = [
        nn.functional.cross_entropy(run(some[:, :-1]).transpose(1, 2), some[:, 1:]).item() for some in tokens.split(16)
    ]
    return statistics.fmean(lost) / float(np.log(2))


def _runner(runtime: str, path: Path) -> Callable[[Tensor], Tensor]:
    """A file as a function, on one thread, in float32."""
    if runtime == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
    return lambda x: torch.from_numpy(compiled([x.contiguous().numpy()])[0].copy())


def latencies(runners: list[Callable[[Tensor], Tensor]], x: Tensor) -> list[float]:
    """Milliseconds of one input on the processor, medians of runs by turns: other work does not count."""
    times: list[list[float]] = [[] for _ in runners]
    for number in range(RUNS + 3):
        for runner, kept in zip(runners, times, strict=True):
            began = time.process_time()
            runner(x)
            if number >= 3:
                kept.append(1000 * (time.process_time() - began))
    return [statistics.median(kept) for kept in times]


def _size(path: Path) -> int:
    """Bytes of a file, and of the weights beside it."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" else 0)


def claims(rows: list[list[Any]]) -> list[list[Any]]:
    """The bars: no more bytes, no worse quality, as fast but for noise."""
    made = []
    for name, runtime, opponent, metric, _, theirs, ours, their_bytes, size, dense_ms, their_ms, ms in rows:
        what = f"{name}, {runtime}, beside {opponent}"
        gain = ours - theirs if metric.startswith("accuracy") else theirs - ours
        made.append(claim(f"{what}: {metric} better", gain, 0.0, ".3f"))
        made.append(claim(f"{what}: bytes, of theirs", size / their_bytes, 1.0, ".2f", at_most=True))
        if ms is not None:
            made.append(claim(f"{what}: time, of theirs", ms / their_ms, NOISE, ".2f", at_most=True))
            made.append(claim(f"{what}: time, of float32", ms / dense_ms, NOISE, ".2f", at_most=True))
    return made


if __name__ == "__main__":
    main()
