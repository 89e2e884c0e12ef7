"""A checkpoint of about 1 GB, compressed without data at 4 bits and read back: memory and speed.

Float32 layers of 4096 x 4096, Gaussian and Laplace in turn with a scale for every row, are streamed into a temporary
file. A process of its own compresses it and another reads every weight back, one tensor in memory at a time for each of
two threads; the peak is the largest resident memory of the process, interpreter and libraries included. Rates are by
the clock, and beside them by the time of the cores that was used, which other work on the machine disturbs less.

    python benchmarks/large_file.py [--layers 16] [--width 4096]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lib.common import Table, claim, claims_table, finish

LAYERS, WIDTH = 16, 4096
BITS = 4.0
RECIPE = "Quantize()"


def write_checkpoint(path: Path, layers: int, width: int) -> None:
    """A .safetensors file, a few rows in memory at a time."""
    size = 4 * width * width
    header: dict[str, Any] = {
        f"layers.{i}.weight": {"dtype": "F32", "shape": [width, width], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(layers)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    rows = min(256, width)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for layer in range(layers):
            for start in range(0, width, rows):
                shape = (min(rows, width - start), width)
                values = rng.standard_normal(shape, dtype=np.float32) if layer % 2 else rng.laplace(0, 0.7, shape)
                scales = 0.02 * np.exp(0.3 * rng.standard_normal((shape[0], 1)))
                out.write((values * scales).astype("<f4").tobytes())


def compress(source: Path, target: Path) -> dict[str, float]:
    """Seconds of compressing, by the clock and of the cores, and bytes of the file."""
    from waterfill import compress_file  # which imports everything, before the clock starts

    begin, busy = time.perf_counter(), time.process_time()
    summary = compress_file(source, target, RECIPE, bits=BITS)
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    return {"seconds": seconds, "busy": busy, "bytes": summary.size, "bits": summary.bits}


def read_back(source: Path, target: Path) -> dict[str, float]:
    """Seconds of restoring every weight of `target`, two at a time; then the relative squared error of the first."""
    import torch
    from safetensors import safe_open

    from waterfill import load_tensor

    torch.set_num_threads(1)  # the two threads are ours
    with safe_open(source, "pt") as original:
        names = list(original.keys())
        begin, busy = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(2) as pool:
            entries = sum(pool.map(lambda name: load_tensor(target, name).numel(), names))
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        peak = peak_bytes()
        wanted = original.get_tensor(names[0])
    error = (wanted - load_tensor(target, names[0])).square().sum() / wanted.square().sum()
    return {"seconds": seconds, "busy": busy, "entries": entries, "error": float(error), "peak": peak}


def peak_bytes() -> int:
    """The most memory that this process has had resident; Linux counts in kB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_process(what: str, source: Path, target: Path) -> dict[str, float]:
    """The answer of this script, run as `--child what`."""
    command = [sys.executable, __file__, "--child", what, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(layers: int, width: int) -> dict[str, Table]:
    """All of it, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "large.safetensors", Path(name) / "large.wf"
        write_checkpoint(source, layers, width)
        weights, original = layers * width * width, source.stat().st_size
        idle = in_a_process("idle", source, target)
        packed = in_a_process("compress", source, target)
        restored = in_a_process("read_back", source, target)
    assert restored["entries"] == weights
    rows = [
        ["checkpoint, GB", original / 1e9],
        ["file, GB", packed["bytes"] / 1e9],
        ["bits per weight", packed["bits"]],
        ["relative squared error of the first layer, %", 100 * restored["error"]],
        ["compressing, s", packed["seconds"]],
        ["compressing, M weights/s", weights / 1e6 / packed["seconds"]],
        ["compressing, M weights a second of one core", weights / 1e6 / packed["busy"]],
        ["compressing, peak memory, MB", packed["peak"] / 1e6],
        ["reading back, s", restored["seconds"]],
        ["reading back, M weights/s", weights / 1e6 / restored["seconds"]],
        ["reading back, M weights a second of one core", weights / 1e6 / restored["busy"]],
        ["reading back, peak memory, MB", restored["peak"] / 1e6],
        ["peak memory of a process that only imports, MB", idle["peak"] / 1e6],
    ]
    claims = [
        claim("peak memory of compressing, MB", packed["peak"] / 1e6, 1000, ",.0f", at_most=True),
        claim("compressing, M weights/s on two cores", weights / 1e6 / packed["seconds"], 40, ".1f"),
        claim("reading back, M weights/s on two cores", weights / 1e6 / restored["seconds"], 200, ".1f"),
    ]
    title = f"A checkpoint of {layers} layers of {width} x {width}, {RECIPE} at {BITS:g} bits"
    return {"large": Table(title, {"what": "", "found": ",.2f"}, rows), "claims": claims_table(claims)}


def idle(source: Path, target: Path) -> dict[str, float]:
    """What an interpreter with the libraries takes by itself."""
    from waterfill import compress_file

    return {"bytes": float(callable(compress_file))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, source, target = options.child
        action = {"compress": compress, "read_back": read_back, "idle": idle}[what]
        answer = action(Path(source), Path(target))
        print(json.dumps({"peak": peak_bytes()} | answer))
        return
    tables = measure(options.layers, options.width)
    shape = {"layers": options.layers, "width": options.width}
    partial = shape != {"layers": LAYERS, "width": WIDTH}
    finish("large_file", tables, shape, partial=partial, shown=("large", "claims"))


if __name__ == "__main__":
    main()
