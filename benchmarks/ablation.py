"""What each step of compression with data is worth: ResNet-20 at one size, with one step left out or changed at a time.

Shown is the divergence from the uncompressed network on training images that were not calibrated with, and the accuracy
on the 10,000 test images. Codes that differ at random differ by up to a third of the divergence, and by 0.2 points.

    python benchmarks/ablation.py [--quick]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from calibration_data import calibration_batches, model_of
from common import Table, data_folder, finish
from networks import networks

import waterfill
from waterfill import Steps, compress_with_data, measure_of
from waterfill.weights import Weight

NETWORK = "ResNet-20"
BITS = 1.6
INPUTS = 256
PLAIN = "Quantize(states=8)"
VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "without data": {"blind": True},
    "without folded norms": {"fold": False},
    "all weights at once, not in order": {"stages": 0},
    "without repairs": {"repair": False},
    "importance by the Fisher matrix": {"importance": "fisher"},
    "damping fixed at 1e-6": {"damping": 1e-6},
    "damping fixed at 0.03": {"damping": 0.03},
    "one probe": {"probes": 1},
    "64 inputs": {"inputs": 64},
    "scalar codes": {"spec": "Quantize()"},
    "256 states": {"spec": "Quantize(states=256)"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three variants, 1,000 test images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = data_folder()
    network = networks()[NETWORK]
    state = network.state(folder)
    evaluate = network.prepare(folder, state, options.quick)
    held_out = calibration_batches(NETWORK, folder, 10_000)[1::10]  # every tenth batch; few images are in both
    model = model_of(NETWORK, folder, state)
    divergence = measure_of("divergence", held_out, model)
    rows = []
    for name, changes in list(VARIANTS.items())[: 3 if options.quick else None]:
        begin = time.perf_counter()
        made = compressed(model, folder, dict(changes))
        seconds = time.perf_counter() - begin
        small = made.install(model_of(NETWORK, folder, state))
        found = evaluate(small.state_dict())
        rows.append([name, made.size, made.bits, divergence(small), found.quality, seconds])
        print(f"{name}: {rows[-1][1:]}", flush=True)
    columns = {"variant": "", "bytes": ",d", "bits": ".3f", "divergence": ".4f", "accuracy, %": ".2f", "seconds": ".0f"}
    tables = {"steps": Table(f"{NETWORK} at {BITS:g} bits, one step changed at a time", columns, rows)}
    finish("ablation", tables, vars(options), partial=options.quick, shown=tables)


def compressed(model: torch.nn.Module, folder: Any, changes: dict[str, Any]) -> waterfill.CompressedModel:
    """The model compressed with some steps changed."""
    batches = calibration_batches(NETWORK, folder, changes.pop("inputs", INPUTS))
    spec, damping = changes.pop("spec", PLAIN), changes.pop("damping", None)
    if changes.pop("blind", False):
        return waterfill.compress(model, bits=BITS)
    with fixed_damping(damping):
        return compress_with_data(model, batches, spec, bits=BITS, steps=replace(Steps(), **changes))


@contextmanager
def fixed_damping(damping: float | None) -> Iterator[None]:
    """Weights with this damping, whatever the data say; as they are for None."""
    if damping is None:
        yield
        return
    original: Callable[..., Any] = Weight._damped
    Weight._damped = lambda self, importance, price: replace(importance, damping=damping)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Weight._damped = original  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
