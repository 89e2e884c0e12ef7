"""8-bit inputs by ranges that calibration found, beside float32 and beside ONNX Runtime's static quantization.

Networks are compressed without inputs to 4 bits of the whole file. Restored to dense weights they are "float32"; ONNX
Runtime gets the same weights, and quantizes them and the inputs of layers to 8 bits (QDQ, a scale for each channel,
ranges by least and largest value) on the same calibration images as `runtime.quantize_activations`; "fused" is what
`runtime.fuse` makes of that. Accuracy and
divergence are on images of the test set that calibration has not seen. Times are of the processor, one thread, the
shortest of several runs, taken in turns. ONNX Runtime and onnx must be installed, or their rows are left out.

    python benchmarks/int8.py [--bits 4] [--images 2000]
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lib.calibration_data import SPARED, calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, data_module, finish
from lib.networks import imagenet_scale, networks
from lib.turns import in_turns
from torch import Tensor, nn

import waterfill
from waterfill import runtime
from waterfill.runtime.fused.integers import IntegerConvolution
from waterfill.runtime.fused.program import Program
from waterfill.runtime.int8.kernel import largest_code
from waterfill.runtime.leaves import Term
from waterfill.runtime.speed import memory_of

NETWORKS = ("ResNet-20", "SqueezeNet 1.1")
SIZES = (1, 32)
CALIBRATION = 256
ROUNDS, SECONDS = 40, 60.0
"""Rounds of which the shortest counts: so many, or at least three and so many seconds."""
FLOATS, RANGES, FUSED = "float32", "8-bit inputs", "8-bit inputs, fused"
OTHER, STATIC = "ONNX Runtime, float32", "ONNX Runtime, static int8"
Run = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=float, default=4.0, help="of the whole file, per weight")
    parser.add_argument("--images", type=int, default=2000, help="of the test set, at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, rows, layers = data_folder(), [], []
    for name in NETWORKS:
        batches = [batch.contiguous(memory_format=torch.channels_last) for batch in calibration(name, folder)]
        forms, table = forms_of(name, folder, batches, options.bits)
        layers += [[name, *row] for row in table]
        rows += [[name, *row] for row in measured(forms, *test_images(name, folder, options.images), batches)]
    tables = {
        "networks": Table("8-bit inputs: quality and time", COLUMNS, rows),
        "layers": Table("What became of the layers", {"network": "", "layers": "d", "form": "", "why": ""}, layers),
        "claims": claims_table(claims(rows)),
    }
    partial = any(getattr(options, key) != parser.get_default(key) for key in vars(options))
    facts = {"largest code that sums are exact for": largest_code()}
    finish("int8", tables, vars(options) | facts, partial=partial, shown=tables)


COLUMNS = {"network": "", "form": "", "accuracy, %": ".2f", "divergence, nats": ".2g"}
COLUMNS |= {f"ms, {size} at once": ".2f" for size in SIZES} | {"memory of weights, MB": ".3f"}


def calibration(name: str, folder: Path) -> list[Tensor]:
    return calibration_batches(name, folder, CALIBRATION)


def test_images(name: str, folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, channels last, and their classes."""
    file = "cifar10_test.npz" if name.startswith("ResNet") else "imagenet_sample_250.npz"
    pixels, labels = data_module(folder, "imgpack").load(folder / file)
    pixels, labels = torch.from_numpy(pixels), torch.from_numpy(labels).long()
    if not name.startswith("ResNet"):
        rest = torch.arange(len(pixels)) % SPARED != 0
        pixels, labels = pixels[rest], labels[rest]
    x = imagenet_scale(folder)(pixels[:count].permute(0, 3, 1, 2).float())
    return x.contiguous(memory_format=torch.channels_last), labels[:count]


def forms_of(name: str, folder: Path, batches: list[Tensor], bits: float) -> tuple[dict[str, Any], list[list[Any]]]:
    """The network in every form, by name, and how many of its layers are what, and why."""
    state = networks()[name].state(folder)
    made = waterfill.compress(state, bits=bits)
    dense = made.install(model_of(name, folder, state)).eval().to(memory_format=torch.channels_last)
    forms: dict[str, Any] = {FLOATS: dense, "packed": waterfill.pack(made, model_of(name, folder, state))}
    forms |= dict(opponents(dense, batches))
    packed = waterfill.pack(made, model_of(name, folder, state))
    forms[RANGES] = runtime.quantize_activations(packed, batches)
    forms[FUSED] = runtime.fuse(forms[RANGES])
    for size in SIZES:
        packed = waterfill.pack(made, model_of(name, folder, state))
        forms[f"{RANGES} where faster, {size} at once"] = runtime.quantize_activations(packed, batches, batch=size)
    kinds: dict[tuple[str, str], int] = {}
    for row in runtime.table(forms[RANGES])[:-1]:
        kind = ("8-bit inputs" if "8-bit inputs" in row["form"] else row["form"], row["why"].partition(":")[0])
        kinds[kind] = kinds.get(kind, 0) + 1
    return forms, [[count, *kind] for kind, count in kinds.items()]


def opponents(dense: nn.Module, batches: list[Tensor]) -> Iterator[tuple[str, Run]]:
    """The network with the same weights in ONNX Runtime: as it is, and quantized on the same images."""
    try:
        import onnx  # noqa: F401 - which the exporter needs
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        print("without ONNX Runtime: it is not installed")
        return

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # which has no types
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"x": batch.contiguous().numpy()}

    def run_of(file: Path) -> Run:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])

    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, ready, small = (Path(place) / f"{name}.onnx" for name in ("plain", "ready", "small"))
        axes = {"x": {0: "batch"}}
        torch.onnx.export(dense, (batches[0],), plain, dynamo=False, input_names=["x"], dynamic_axes=axes)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready, small, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, per_channel=True, reduce_range=largest_code() < 127,
        )  # fmt: skip
        yield OTHER, run_of(plain)
        yield STATIC, run_of(small)


@torch.inference_mode()
def measured(forms: dict[str, Run], images: Tensor, labels: Tensor, batches: list[Tensor]) -> Iterator[list[Any]]:
    """A row of each form."""
    wanted = outputs(forms[FLOATS], images)
    times = {size: in_turns(given(forms, batches[0][:size]), ROUNDS, SECONDS) for size in SIZES}
    for name, run in forms.items():
        found = outputs(run, images)
        accuracy = 100 * float((found.argmax(1) == labels).float().mean())
        nats = float(torch.nn.functional.kl_div(
            found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
        ))  # fmt: skip
        memory = held(run) / 1e6 if isinstance(run, nn.Module) else None
        row = [name, accuracy, max(0.0, nats), *(1e3 * times[size][name] for size in SIZES), memory]
        print(*row, flush=True)
        yield row


def given(forms: dict[str, Run], x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each takes inputs in the order in memory that it reads."""
    return {name: partial(run, x if isinstance(run, nn.Module) else x.contiguous()) for name, run in forms.items()}


def held(model: nn.Module) -> int:
    """Bytes of the tensors of a network, of weights in the order of kernels, and of the memory of programs."""
    kinds = (Term, IntegerConvolution, Program)
    return memory_of(model) + sum(module.beside for module in model.modules() if isinstance(module, kinds))


def outputs(run: Run, images: Tensor) -> Tensor:
    return torch.cat([run(piece) for piece in images.split(50)])


def claims(rows: list[list[Any]]) -> list[list[Any]]:
    """The bars: what 8-bit inputs lose and gain, beside float32 and beside ONNX Runtime."""
    made = []
    for network in NETWORKS:
        at = {row[1]: row[2:] for row in rows if row[0] == network}
        own, fused, floats, other = at[RANGES], at[FUSED], at[FLOATS], at.get(STATIC)
        made.append(claim(f"{network}: accuracy that 8-bit inputs lose", floats[0] - own[0], 0.5, ".2f", at_most=True))
        made.append(claim(f"{network}: accuracy that is lost, fused", floats[0] - fused[0], 0.5, ".2f", at_most=True))
        for column, size in enumerate(SIZES, start=2):
            text, ratio = f"{network}, {size} at once", floats[column] / fused[column]
            made.append(claim(f"{text}, fused: times as fast as float32", ratio, 1.5, ".2f"))
            if other is not None:
                speed = other[column] / fused[column]
                made.append(claim(f"{text}, fused: times as fast as ONNX Runtime's", speed, 0.8, ".2f"))
        made.append(claim(f"{network}, 32 at once: times as fast as float32", floats[3] / own[3], 1.2, ".2f"))
        if other is not None:
            ratio = fused[1] / max(other[1], 1e-9)
            made.append(claim(f"{network}, fused: divergence over ONNX Runtime's", ratio, 1.0, ".2f", at_most=True))
    return made


if __name__ == "__main__":
    main()
