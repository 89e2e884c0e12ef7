"""What llama.cpp's tools read and write of a language model: its weights, its importance matrix, its quantized weights.

An importance matrix is what llama-imatrix collects: of every linear layer the mean square of each input. Formats in
blocks of 256 do not fit matrices whose columns are no multiple of 256, and llama.cpp takes wider formats there;
`laid_together` makes such matrices fit, some rows one after another as one row, so that they can be measured too.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import waterfill.hf
from waterfill.export import How, export
from waterfill.export.gguf.llama import Sizes, renamed
from waterfill.network.running.forward import hooked

BLOCK = 256
"""Columns of a block of llama.cpp's K and IQ formats."""


def write_original(folder: Path, place: Path) -> Path:
    """The folder of a transformers model as a file of GGUF in float32, in `place`."""
    exact, made = place / "exact", place / "float32.gguf"
    if not exact.exists():
        waterfill.hf.compress_folder(folder, exact, lossless=True)
    export(exact, made, "gguf", how=How(dtype="float32", force=True))
    return made


def mean_squares(model: nn.Module, sequences: Tensor) -> dict[str, np.ndarray]:
    """Of every linear layer but the output, by llama.cpp's name: the mean square of each input.

    sequences: tokens [sequences, length].
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}
    sums = {name: torch.zeros(m.in_features, dtype=torch.float64, device="cpu") for name, m in layers.items()}

    def add(name: str, _: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        sums[name] += inputs[0].double().square().flatten(0, -2).sum(0)

    with torch.no_grad(), hooked(layers, add):
        for sequence in sequences:
            model(sequence[None], use_cache=False)
    count = sequences.numel()
    return {renamed(f"{name}.weight"): (total / count).float().numpy() for name, total in sums.items()}


def write_importance(squares: dict[str, np.ndarray], target: Path, text: str, shape: tuple[int, int]) -> None:
    """The file that `llama-quantize --imatrix` takes. text: where the inputs are from; shape: sequences, length."""
    import gguf

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [text])
    writer.add_uint32("imatrix.chunk_count", shape[0])
    writer.add_uint32("imatrix.chunk_size", shape[1])
    count = float(shape[0] * shape[1])
    for name, values in squares.items():
        writer.add_tensor(f"{name}.in_sum2", np.asarray(values * np.float32(count), np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[count]], np.float32))
    _finish(writer)


def rows_together(columns: int) -> int:
    """How many rows, one after another, are a multiple of a block."""
    return BLOCK // math.gcd(columns, BLOCK)


def laid_together(source: Path, target: Path) -> None:
    """The same tensors, with as many rows of a matrix as one as fill whole blocks."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        rows = rows_together(tensor.data.shape[-1]) if tensor.data.ndim == 2 else 1
        laid = tensor.data.reshape(len(tensor.data) // rows, -1) if rows > 1 else tensor.data
        writer.add_tensor(tensor.name, laid)
    _finish(writer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def restored(file: Path, folder: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a quantized file, float32, as the transformers model of `folder` has them.

    like: its tensors, of which the shapes are taken.
    """
    import gguf

    sizes = Sizes(json.loads((folder / "config.json").read_text("utf-8")))
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    state = {}
    for name, wanted in like.items():
        tensor = found[renamed(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(wanted.shape)
        order = sizes.order(name, len(values))
        if order is not None:
            ordered, values = values, np.empty_like(values)
            values[order] = ordered
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    return state


def contents(file: Path) -> tuple[int, str]:
    """Bytes of the tensors of a file, and which formats hold what share of the weights, the largest first."""
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    shares = ((name, 100 * count / weights.total()) for name, count in weights.most_common())
    return sum(int(tensor.n_bytes) for tensor in tensors), ", ".join(f"{n} {s:.0f} %" for n, s in shares if s >= 0.5)
