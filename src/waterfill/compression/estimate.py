"""The time that a job takes, estimated by fitting a few of its weights; with inputs, by running the network too."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from waterfill.calibration.calibrate import bytes_gathered, bytes_in_all, weights_of
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.options import Options
from waterfill.importance import Importance
from waterfill.network.layout import VECTOR
from waterfill.network.running.batches import count_of
from waterfill.network.running.forward import as_deployed, call
from waterfill.network.running.inputs import Inputs
from waterfill.parts import Quantize

_PROBED = 1 << 19  # entries of a weight that is timed; of larger ones some rows
_PROBES = 3  # weights of a kind, of different sizes
_AGAIN = 1.0, 1.7  # fits of each weight, at best and at worst, until a size is met
_WARM = 0.6  # share of the measuring time, at best, once tables and files are in memory
_PRICE = 4.0**-3  # relative to the mean square of a matrix: about three bits an entry
_SHARED = 0.5  # threads gained by each further one, at worst
_FITS = 2.5  # of each weight with inputs: to the budget, in order, and of samples
_BACKWARD = 2.0  # a backward pass and the products that are gathered in it, over a forward pass
_RERUN = 6.0, 40.0  # runs of all inputs in the other steps: of a network of blocks, and of one without
_COPIES = 14  # bytes an entry: the caller's network and two copies in float32, and parts
_OUTPUTS = 8  # copies of the outputs of a batch
_COMPARED = 1 << 28  # bytes of outputs that are kept to compare with
_LIBRARIES = 400 << 20


@dataclass(frozen=True)
class WithInputs:
    """What compressing with inputs takes, about. seconds: at best and at worst. memory, disk: bytes at the peak."""

    seconds: tuple[float, float]
    memory: int
    disk: int


@torch.inference_mode(False)
def with_inputs(model: nn.Module, inputs: Inputs, options: Options = Options()) -> WithInputs:
    """What `compress` of the model with these inputs would take, from two runs of a batch and fits of a few weights.

    Raises BadInput for a model or a first batch that `compress` would refuse.
    """
    inputs.check(model)
    known = count_of(inputs.batches)
    count = sum(1 for _ in inputs.batches) if known is None else known
    with as_deployed(model):
        outputs = call(model, inputs.first, inputs.forward)
        began = time.perf_counter()
        call(model, inputs.first, inputs.forward)
        forward = count * (time.perf_counter() - began)
    tensors, layouts = weights_of(model)
    matrices = [layout.split(tensors[name])[0] for name, layout in layouts.items() if layout.role != VECTOR]
    gathered, kept = bytes_gathered(model), bytes_in_all(model)
    passes = -(-gathered // options.memory)
    calibrating = passes * forward * (1 + _BACKWARD * options.steps.probes)
    sizes = [layout.entries for layout in layouts.values() if layout.role != VECTOR]
    fitting = _FITS * _fitting(matrices, sizes)
    best, worst = (calibrating + runs * forward + fitting for runs in _RERUN)
    held = min(gathered, options.memory) if kept > options.memory else kept
    own = _COPIES * sum(sizes) + _OUTPUTS * outputs.nbytes + min(_COMPARED, count * outputs.nbytes)
    return WithInputs((best, worst), _LIBRARIES + own + held, kept if kept > options.memory else 0)


def _fitting(matrices: Sequence[Tensor], sizes: Sequence[int]) -> float:
    """Seconds to fit each of these once. sizes: their entries, or those of all matrices of a stack."""
    ranked = sorted(matrices, key=lambda matrix: matrix.numel())
    paces = []
    for place in sorted({0, len(ranked) // 2, len(ranked) - 1}) if ranked else ():
        matrix = ranked[place]
        some = matrix[: max(1, _PROBED // max(1, matrix.shape[1]))].detach().float().cpu()
        importance = Importance(gram=torch.eye(some.shape[1], dtype=torch.float32, device="cpu"))
        price = _PRICE * float(some.square().mean())
        began = time.perf_counter()
        Quantize(states=64).fit(some, importance, price)
        paces.append((matrix.numel(), (time.perf_counter() - began) / max(1, some.numel())))
    return sum(size * min(paces, key=lambda pace: abs(pace[0] - size))[1] for size in sizes)


def seconds_of(weights: Sequence[Weight], price: float, workers: int, measuring: float) -> tuple[float, float]:
    """Seconds that fitting weights at a price takes at best and at worst, with `measuring`, which is known, before it.

    A few weights of each kind (matrices, kernels, vectors), small, middling and large, are fitted here; others take as
    long for an entry as the one of their kind that is nearest in size.
    """
    kinds: dict[str, list[Weight]] = {}
    for weight in weights:
        kinds.setdefault(weight.layout.role if not weight.reason else "as it is", []).append(weight)
    total = sum(_seconds(kind, price) for kind in kinds.values())
    threads = min(workers, os.cpu_count() or 1, len(weights))
    best, worst = _AGAIN[0] * total / threads, _AGAIN[1] * total / (1 + _SHARED * (threads - 1))
    return _WARM * measuring + best, measuring + worst


def _seconds(weights: list[Weight], price: float) -> float:
    """Seconds for all weights of a kind, one after the other."""
    ranked = sorted(weights, key=lambda weight: weight.layout.entries)
    count = min(_PROBES, len(ranked))
    places = {round(i * (len(ranked) - 1) / max(1, count - 1)) for i in range(count)}
    paces: list[tuple[int, float]] = []  # entries, and seconds for each
    _some_rows(ranked[0]).fit(price)  # the first of a kind makes tables that the others find
    for place in sorted(places):
        probe = _some_rows(ranked[place])
        began = time.perf_counter()
        probe.fit(price)
        entries = max(1, probe.layout.entries)
        paces.append((entries, (time.perf_counter() - began) / entries))
    sizes = [max(1, weight.layout.entries) for weight in ranked]
    return sum(size * min(paces, key=lambda pace: abs(pace[0] - size))[1] for size in sizes)


def _some_rows(weight: Weight) -> Weight:
    """A weight, or its first rows where it is large."""
    layout = weight.layout
    rows = max(1, layout.shape[0] * _PROBED // layout.entries) if layout.entries > _PROBED else 0
    if not rows or rows >= layout.shape[0]:
        return weight
    smaller = replace(layout, shape=(rows, *layout.shape[1:]))
    return replace(weight, layout=smaller, load=lambda: weight.load()[:rows], importance=None)
