"""What is assumed about a network of which only the weights are known, and what each assumption is worth.

Two numbers: the correlation of neighboring inputs of a spatial kernel, and the exponent that says how the cost of a
relative error grows with the entries of a weight. One is varied while the other stays at the value in use. Measured is
the divergence of the outputs from the original's (mean KL, nats) at equal sizes of the file.

    python benchmarks/prior.py [--full]
"""

import argparse
import functools
import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from lib.common import Table, data_folder, finish
from lib.networks import Evaluator, State, networks
from torch import Tensor

import waterfill
from waterfill.importance import SIZE_EXPONENT, SMOOTHNESS, Importance, entrywise, smooth_gram
from waterfill.network.layout import KERNEL, MATRIX, VECTOR, layout_of

RATES = {"ResNet-20": (3.0, 2.0), "SqueezeNet 1.1": (3.0, 2.0), "MobileNetV1 0.25": (4.0, 3.0)}
"""Bits per weight of the file, by network."""
CORRELATIONS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
EXPONENTS = (0.0, 0.15, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Job:
    """One compression: a network, bits per weight of the file, and the two assumptions."""

    network: str
    bits: float
    correlation: float
    exponent: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="all test images; without it 1,000 of CIFAR-10, 50 of ImageNet"
    )
    quick = not parser.parse_args().full
    folder = data_folder()
    priors = [(c, SIZE_EXPONENT) for c in CORRELATIONS] + [(SMOOTHNESS, e) for e in EXPONENTS]
    jobs = [Job(*point, *prior) for prior in dict.fromkeys(priors) for point in points()]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        found = dict(zip(jobs, pool.map(functools.partial(measure, folder, quick), jobs), strict=True))
    tables = {
        "correlation": table("correlation", found, [(c, SIZE_EXPONENT) for c in CORRELATIONS], 0),
        "exponent": table("exponent", found, [(SMOOTHNESS, e) for e in EXPONENTS], 1),
    }
    finish("prior", tables, {"quick": quick}, partial=False, shown=tables)


def points() -> list[tuple[str, float]]:
    """Every network with each of its rates."""
    return [(name, bits) for name, rates in RATES.items() for bits in rates]


def one_thread() -> None:
    """Two processes on two cores: one thread each."""
    torch.set_num_threads(1)


@functools.lru_cache(maxsize=len(RATES))
def prepared(folder: Path, name: str, quick: bool) -> tuple[State, Evaluator]:
    """A network's tensors and what measures it; kept from job to job."""
    network = networks()[name]
    state = network.state(folder)
    return state, network.prepare(folder, state, quick)


def measure(folder: Path, quick: bool, job: Job) -> float:
    """Divergence in nats after one compression."""
    state, evaluate = prepared(folder, job.network, quick)
    model = waterfill.compress(state, bits=job.bits, importance=assumed(state, job.correlation, job.exponent))
    divergence = evaluate(model.state_dict()).divergence
    if divergence is None:
        raise ValueError(f"{job.network} has no outputs to compare")
    return divergence


def assumed(state: State, correlation: float, exponent: float) -> Mapping[str, Importance]:
    """The importance of every tensor; for the two values in use, what it would be without being given."""
    found = {}
    for name, tensor in state.items():
        layout = layout_of(tuple(tensor.shape), tensor.dtype)
        if layout.role in (MATRIX, KERNEL):
            found[name] = relative(layout.split(tensor)[0], layout.kernel, correlation, exponent)
        elif layout.role == VECTOR:
            found[name] = entrywise(tensor).scaled(tensor.numel() ** (exponent - SIZE_EXPONENT))
    return found


def relative(target: Tensor, kernel: tuple[int, ...], correlation: float, exponent: float) -> Importance:
    """A squared error relative to the energy of the target [rows, cols], times entries ** exponent."""
    gram = smooth_gram(kernel, correlation) if math.prod(kernel) > 1 else None
    plain = Importance(gram=gram, kernel=kernel)
    return plain.scaled(target.numel() ** exponent / plain.inner(target, target))


def table(what: str, found: Mapping[Job, float], priors: list[tuple[float, float]], varied: int) -> Table:
    """A row for every value of one assumption, a column for every network and rate."""
    columns = {what: ".2f"} | {f"{name}, {bits:g} bits": ".4f" for name, bits in points()}
    rows = [[prior[varied], *(found[Job(*point, *prior)] for point in points())] for prior in priors]
    return Table(f"Divergence in nats by {what}", columns, rows)


if __name__ == "__main__":
    main()
