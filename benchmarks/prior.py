"""What is assumed about a network of which only the weights are known, and what each assumption is worth.

Two numbers: the correlation of neighboring inputs of a spatial kernel, one for all kernels here, and the exponent that
says how the cost of a relative error grows with the entries of a weight. One is varied while the other stays at the
value in use. And what the network itself tells (`waterfill.compression.allocation.assumptions`): each piece left out,
the others kept. Measured is the divergence of the outputs from the original's (mean KL, nats) at equal sizes of the
file.

    python benchmarks/prior.py [--full] [--left-out]
"""

import argparse
import functools
import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from lib.common import Table, data_folder, finish
from lib.networks import Evaluator, State, networks
from torch import Tensor

import waterfill
from waterfill.compression.allocation.without_data import SIZE_EXPONENT, SMOOTHNESS, entrywise
from waterfill.compression.costs.assumptions import by_lines, by_norms, by_place
from waterfill.compression.task import plan_weights
from waterfill.importance import Importance, smooth_gram
from waterfill.network.layout import KERNEL, MATRIX, VECTOR, layout_of
from waterfill.recipe import parse

RATES = {"ResNet-20": (3.0, 2.0), "SqueezeNet 1.1": (3.0, 2.0), "MobileNetV1 0.25": (4.0, 3.0)}
"""Bits per weight of the file, by network."""
CORRELATIONS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
TOLD = RATES | {"Llama 260K": (4.0, 3.0)}
BLOCKS, NORMS, LINES, KERNELS = "blocks", "norms", "rows and columns", "kernels"
NOTHING = "nothing"
LEFT_OUT = (NOTHING, BLOCKS, NORMS, LINES, KERNELS)


@dataclass(frozen=True)
class Job:
    """One compression: a network, bits per weight of the file, and the two assumptions, or what is left out."""

    network: str
    bits: float
    correlation: float = SMOOTHNESS
    exponent: float = SIZE_EXPONENT
    left_out: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="all test images; without it 1,000 of CIFAR-10, 50 of ImageNet"
    )
    parser.add_argument("--left-out", action="store_true", help="only what the network tells, each piece left out")
    options = parser.parse_args()
    quick = not options.full
    folder = data_folder()
    priors = [(c, SIZE_EXPONENT) for c in CORRELATIONS] + [(SMOOTHNESS, e) for e in EXPONENTS]
    jobs = [Job(*point, *prior) for prior in dict.fromkeys(priors) for point in points(RATES)]
    told = [Job(*point, left_out=piece) for piece in LEFT_OUT for point in points(TOLD)]
    jobs = told if options.left_out else jobs + told
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        found = dict(zip(jobs, pool.map(functools.partial(measure, folder, quick), jobs), strict=True))
    tables = {"left_out": left_out_table(found)}
    if not options.left_out:
        tables["correlation"] = table("correlation", found, [(c, SIZE_EXPONENT) for c in CORRELATIONS], 0)
        tables["exponent"] = table("exponent", found, [(SMOOTHNESS, e) for e in EXPONENTS], 1)
    finish("prior", tables, {"quick": quick}, partial=options.left_out, shown=tables)


def points(rates: Mapping[str, tuple[float, ...]]) -> list[tuple[str, float]]:
    """Every network with each of its rates."""
    return [(name, bits) for name, own in rates.items() for bits in own]


def one_thread() -> None:
    """Two processes on two cores: one thread each."""
    torch.set_num_threads(1)


@functools.lru_cache(maxsize=len(TOLD))
def prepared(folder: Path, name: str, quick: bool) -> tuple[State, Evaluator]:
    """A network's tensors and what measures it; kept from job to job."""
    network = networks()[name]
    state = network.state(folder)
    return state, network.prepare(folder, state, quick)


def measure(folder: Path, quick: bool, job: Job) -> float:
    """Divergence in nats after one compression."""
    state, evaluate = prepared(folder, job.network, quick)
    importance = told_but(state, job.left_out) if job.left_out else assumed(state, job.correlation, job.exponent)
    model = waterfill.compress(state, bits=job.bits, importance=importance)
    divergence = evaluate(model.state_dict()).divergence
    if divergence is None:
        raise ValueError(f"{job.network} has no outputs to compare")
    return divergence


def told_but(state: State, left_out: str) -> Mapping[str, Importance]:
    """The importance of every tensor that the network tells, one piece left out."""
    weights = [
        replace(w, factor=1.0, lines="")
        for w in plan_weights(state, dict.fromkeys(state, parse("Quantize()")), {}, None)
    ]
    layouts = {weight.name: weight.layout for weight in weights}
    places = {} if left_out == BLOCKS else by_place(layouts)
    norms = {} if left_out == NORMS else by_norms(weights)
    lines = {} if left_out == LINES else by_lines(layouts)
    found = {}
    for weight in weights:
        name, factor = weight.name, places.get(weight.name, 1.0) * norms.get(weight.name, 1.0)
        if weight.layout.role in (MATRIX, KERNEL, VECTOR):
            target, own = next(replace(weight, factor=factor, lines=lines.get(name, "")).matrices(1.0))
            if left_out == KERNELS and weight.layout.kernel:
                own = relative(target, weight.layout.kernel, SMOOTHNESS, SIZE_EXPONENT).scaled(factor)
            found[name] = own
    return found


def assumed(state: State, correlation: float, exponent: float) -> Mapping[str, Importance]:
    """The importance of every tensor by its size and the correlation of its inputs alone."""
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
    columns = {what: ".2f"} | {f"{name}, {bits:g} bits": ".4f" for name, bits in points(RATES)}
    rows = [[prior[varied], *(found[Job(*point, *prior)] for point in points(RATES))] for prior in priors]
    return Table(f"Divergence in nats by {what}", columns, rows)


def left_out_table(found: Mapping[Job, float]) -> Table:
    """A row for every piece of what the network tells, a column for every network and rate."""
    columns = {"left out": ""} | {f"{name}, {bits:g} bits": ".4f" for name, bits in points(TOLD)}
    rows = [[piece, *(found[Job(*point, left_out=piece)] for point in points(TOLD))] for piece in LEFT_OUT]
    return Table("Divergence in nats without a piece of what the network tells", columns, rows)


if __name__ == "__main__":
    main()
