"""What each step of compression with data is worth: ResNet-20 at one size, with one step left out or changed at a time.

Divergence from the uncompressed network and accuracy, both on the 10,000 test images, are means over several sets of
calibration images. Codes that differ at random move the divergence by about 4 % and the accuracy by 0.2 points, and
the mean of three by about half of that: less is no difference.

    python benchmarks/ablation.py [--quick] [--sets 3] [--workers 2]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from data_free import one_thread
from lib.calibration_data import APART, calibration_batches, model_of
from lib.common import Table, data_folder, finish
from lib.networks import networks

import waterfill
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.post_training import DEFAULT_SPEC

NETWORK = "ResNet-20"
BITS = 1.6
INPUTS = 256
VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "without data": {"blind": True},
    "without folded norms": {"fold": False},
    "all weights at once, not in order": {"stages": 0},
    "in 4 stages instead of one for each weight": {"stages": 4},
    "in 8 stages": {"stages": 8},
    "in 16 stages": {"stages": 16},
    "without repairs": {"repair": False},
    "importance by the Fisher matrix": {"importance": "fisher"},
    "importance by softened divergence": {"importance": "divergence"},
    "damping fixed at 1e-6": {"damping": 1e-6},
    "damping fixed at 0.03": {"damping": 0.03},
    "one probe": {"probes": 1},
    "four probes": {"probes": 4},
    "64 inputs": {"inputs": 64},
    "scalar codes": {"spec": "Quantize()"},
    "codes of 8 states alone": {"spec": "Quantize(states=8)"},
    "codes of 64 states alone": {"spec": "Quantize(states=64)"},
    "codes of 256 states alone": {"spec": "Quantize(states=256)"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three variants, 1,000 test images")
    parser.add_argument("--sets", type=int, default=3, help="of calibration images")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    options = parser.parse_args()
    names = list(VARIANTS)[: 3 if options.quick else None]
    jobs = [(name, number, options.quick) for name in names for number in range(options.sets)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        found = list(pool.map(measured, *zip(*jobs, strict=True)))
    rows = []
    for name in names:
        runs = np.array([run for job, run in zip(jobs, found, strict=True) if job[0] == name])
        mean, divergences = runs.mean(0), runs[:, 2]
        rows.append([name, *mean[:3], divergences.min(), divergences.max(), *mean[3:]])
    columns = {"variant": "", "bytes": ",.0f", "bits": ".3f", "divergence": ".4f", "least": ".4f", "most": ".4f"}
    columns |= {"accuracy, %": ".2f", "seconds": ".0f"}
    title = f"{NETWORK} at {BITS:g} bits, one step changed at a time, means over {options.sets} sets of inputs"
    tables = {"steps": Table(title, columns, rows)}
    partial = options.quick or options.sets != parser.get_default("sets")
    finish("ablation", tables, vars(options), partial=partial, shown=tables)


def measured(name: str, number: int, quick: bool) -> list[float]:
    """Bytes, bits, divergence, accuracy and seconds of a variant with one set of calibration images."""
    folder = data_folder()
    network = networks()[NETWORK]
    state = network.state(folder)
    begin = time.perf_counter()
    made = compressed(model_of(NETWORK, folder, state), folder, number, dict(VARIANTS[name]))
    seconds = time.perf_counter() - begin
    found = network.prepare(folder, state, quick)(made.state_dict())
    assert found.divergence is not None
    print(f"{name}, set {number}: divergence {found.divergence:.4f}, {found.quality:.2f} %", flush=True)
    return [made.size, made.bits, found.divergence, found.quality, seconds]


def compressed(model: torch.nn.Module, folder: Any, number: int, changes: dict[str, Any]) -> waterfill.CompressedModel:
    """The model compressed with some steps changed."""
    batches = calibration_batches(NETWORK, folder, changes.pop("inputs", INPUTS), first=APART * number)
    spec, damping = changes.pop("spec", DEFAULT_SPEC), changes.pop("damping", None)
    if changes.pop("blind", False):
        return waterfill.compress(model, bits=BITS)
    with fixed_damping(damping):
        options = waterfill.Options(steps=replace(waterfill.Steps(), **changes))
        return waterfill.compress(model, batches, spec=spec, bits=BITS, options=options)


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
