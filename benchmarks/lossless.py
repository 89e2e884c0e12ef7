"""Lossless size and speed, one thread, against Zstandard, byte planes with Zstandard, and ZipNN in the same run.

Every checkpoint of the data folder (WATERFILL_DATA, else ../shared/data), in float32 and cast to bfloat16, and one
large synthetic layer. Ours is given a matrix for each tensor, all in one call, and pays for every part's own bytes; the
others are given all tensors of a type in one piece, which is in their favor. Ratios are original bytes over compressed
bytes; rates are GB of original weights a second, the best of three runs (of one, for encoding with Zstandard).

    python benchmarks/lossless.py
"""

import importlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from lib.common import timed
from safetensors.torch import load_file
from torch import Tensor

from waterfill.importance import Importance
from waterfill.part import decode_all, encode_all
from waterfill.parts import Dense

DATA = Path(os.environ.get("WATERFILL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RESULTS = Path(__file__).parent / "results" / "lossless.json"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SLOW_BYTES = 8 << 20  # Zstandard's level 19 sees no more than this of a network: it takes a second for two megabytes
PUBLISHED = {"float32": 1.190, "bfloat16": 1.468}  # of ZipNN, for where it cannot be run

Weights = list[tuple[Tensor, tuple[int, ...]]]
"""Matrices, each with the spatial extent of its kernel."""


def matrices(path: Path, dtype: torch.dtype) -> Weights:
    """The floating-point tensors of a checkpoint as matrices of one type."""
    tensors = [tensor.to(dtype) for tensor in load_file(path).values() if tensor.is_floating_point()]
    return [(t.reshape(len(t), -1) if t.ndim > 1 else t.reshape(1, -1), tuple(t.shape[2:])) for t in tensors]


def synthetic(dtype: torch.dtype) -> Weights:
    """A Gaussian layer [4096, 4096] whose rows and columns differ in scale, as trained ones do."""
    torch.manual_seed(0)
    weight = torch.randn(4096, 4096) * torch.exp(0.3 * torch.randn(4096, 1)) * torch.exp(0.3 * torch.randn(4096))
    return [((0.02 * weight).to(dtype), ())]


def octets(values: Tensor) -> np.ndarray:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy()


def row(coder: str, size: tuple[int, int], seconds: tuple[float, float]) -> dict[str, Any]:
    """One line of the result; `size` in bytes, before and after, `seconds` of encoding and decoding."""
    before, after = size
    encode, decoded = (before / 1e9 / time for time in seconds)
    return {"coder": coder, "ratio": before / after, "encode": encode, "decode": decoded}


def ours(weights: Weights) -> dict[str, Any]:
    def encode() -> list[bytes]:
        return encode_all([Dense(format="lossless").fit(w, Importance(kernel=kernel), 1.0) for w, kernel in weights])

    shapes = [(w.shape[0], w.shape[1]) for w, _ in weights]
    blobs, encoding = timed(encode)
    parts, decoding = timed(lambda: decode_all(blobs, shapes))
    for part, (weight, _) in zip(parts, weights, strict=True):
        assert np.array_equal(octets(part.dense()), octets(weight)), "a weight came back changed"
    before = sum(weight.nbytes for weight, _ in weights)
    return row("waterfill", (before, sum(map(len, blobs))), (encoding, decoding))


def peer(
    name: str, data: np.ndarray, encode: Callable[[bytes], Any], decoder: Callable[[Any], bytes], runs: int = 3
) -> dict[str, Any]:
    """One line for a coder of bytes."""
    given = data.tobytes()
    coded, encoding = timed(lambda: encode(given), runs)
    plain, decoding = timed(lambda: decoder(coded))
    assert bytes(plain) == given, f"{name} changed the bytes"
    return row(name, (len(given), len(coded)), (encoding, decoding))


def zstandard_rows(data: np.ndarray, size: int) -> list[dict[str, Any]]:
    """Zstandard 19 on the words as they are, and on their bytes of equal rank one after the other."""
    data = data[: SLOW_BYTES // size * size]
    coder, decoder = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()

    def encode(given: bytes) -> bytes:
        return coder.compress(np.ascontiguousarray(np.frombuffer(given, np.uint8).reshape(-1, size).T).tobytes())

    def plain(coded: bytes) -> bytes:
        planes = np.frombuffer(decoder.decompress(coded), np.uint8).reshape(size, -1)
        return np.ascontiguousarray(planes.T).tobytes()

    return [
        peer("zstd 19", data, coder.compress, decoder.decompress, runs=1),
        peer("byte planes + zstd 19", data, encode, plain, runs=1),
    ]


def zipnn_row(data: np.ndarray, dtype: str) -> dict[str, Any]:
    """ZipNN on one thread, or what was published of it."""
    try:
        zipnn = importlib.import_module("zipnn")
    except ImportError:
        return {"coder": "ZipNN (published)", "ratio": PUBLISHED[dtype]}

    def fresh() -> Any:
        return zipnn.ZipNN(bytearray_dtype=dtype, threads=1)

    # It reorders the buffer that it is given in place.
    return peer("ZipNN", data, lambda given: fresh().compress(bytearray(given)), lambda c: fresh().decompress(bytes(c)))


def measure(weights: Weights, dtype: str) -> list[dict[str, Any]]:
    data = np.concatenate([octets(weight) for weight, _ in weights])
    return [ours(weights), *zstandard_rows(data, TYPES[dtype].itemsize), zipnn_row(data, dtype)]


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    cpu = models[0] if models else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": 1, "zstandard": zstandard.__version__, **versions}


def main() -> None:
    torch.set_num_threads(1)
    networks = sorted(DATA.glob("*.safetensors"))
    if not networks:
        print(f"no checkpoints in {DATA}: only the synthetic layer is measured; set WATERFILL_DATA")
    results: dict[str, Any] = {"machine": machine(), "rates": "GB of weights a second", "networks": {}}
    for name, path in [("synthetic 4096 x 4096", None), *((path.stem, path) for path in networks)]:
        for dtype, kind in TYPES.items():
            weights = synthetic(kind) if path is None else matrices(path, kind)
            rows = measure(weights, dtype)
            results["networks"].setdefault(name, {})[dtype] = rows
            for one in rows:
                rates = f"{one['encode']:8.3f} {one['decode']:8.3f}" if "encode" in one else ""
                print(f"{name:28} {dtype:9} {one['coder']:22} {one['ratio']:7.4f} {rates}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
