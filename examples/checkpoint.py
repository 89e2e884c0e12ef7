"""Compress a .safetensors file or folder, one weight in memory at a time; then read one tensor out of the result.

python examples/checkpoint.py MODEL.safetensors [BITS]
"""

import sys
from pathlib import Path

import waterfill


def main(source: str, bits: str = "4") -> None:
    plan = waterfill.plan_file(source, bits=float(bits))
    least, most = plan.seconds
    print(f"planned: {plan.size} bytes, {least:.0f} to {most:.0f} s and {plan.memory / 1e6:.0f} MB of memory")

    target = Path(source).with_suffix(".wf")
    summary = waterfill.compress_file(source, target, bits=float(bits))  # killed? the same call goes on
    print(f"written: {summary.size} bytes, {summary.ratio:.2f} times smaller, {summary.bits:.2f} bits per weight")

    largest = max(summary.rows, key=lambda row: row["bytes"])
    tensor = waterfill.load_tensor(target, largest["name"])  # the other tensors stay on disk
    print(f"largest: {largest['name']} {list(tensor.shape)}, {largest['bytes']} bytes, {largest['part']}")

    exact = Path(source).with_suffix(".exact.wf")
    summary = waterfill.compress_file(source, exact, lossless=True)
    print(f"lossless: {summary.size} bytes, {summary.ratio:.2f} times smaller, every bit as it was")


if __name__ == "__main__":
    main(*sys.argv[1:])
