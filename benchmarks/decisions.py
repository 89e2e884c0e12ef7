"""What some decisions of calibration are worth (docs/decisions.md): each is undone, with all else as it is.

* few: of few samples, the output and the position that are added to those that were seen.
* leaning: of few samples, the costs assumed without data that those measured lean on.
* sequences: for a language model, how far chances are softened, and the squared error of its outputs instead.
* unreached: for weights that no input reaches (copies of three layers beside a network), the typical cost.

Divergence from the uncompressed network and quality are those of the whole test sets.

    python benchmarks/decisions.py [--workers 2] [--tables few,leaning]
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
from data_free import one_thread
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, data_folder, finish
from lib.networks import networks
from torch import Tensor, nn

import waterfill
from waterfill import Steps

LENET, LLAMA, RESNET = "LeNet-300-100", "Llama 260K", "ResNet-20"
BITS = {LENET: 3.0, LLAMA: 3.0, RESNET: 1.6}
SAMPLES = (1, 2, 256)
LEANT = {2.0: (1, 2, 4, 32), 1.2: (1, 2)}
"""Bits per weight -> how many samples."""
LEANING, AT_THEIR_WORD = "leaning", "at their word"
AS_IT_IS, BLIND = "as it is", "without data"
CHANCES: dict[str, float | None] = {
    "softened to 2 nats": 2.0,
    "softened to 1 nat": 1.0,
    "softened to 0.5 nats": 0.5,
    "as they are": 0.0,
    "squared error instead": None,
}
COPIED = {LLAMA: ("layers.1", "layers.2", "layers.3"), RESNET: ("layer1.1", "layer2.1", "layer3.1")}
COSTS = ("typical", "assumed")
TABLES = ("few", "leaning", "sequences", "unreached")
Row = list[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--tables", default=",".join(TABLES), help="which, separated by commas")
    options = parser.parse_args()
    chosen = options.tables.split(",")
    jobs: list[tuple[str, tuple[Any, ...]]] = [("unreached", (network, cost)) for network in COPIED for cost in COSTS]
    jobs += [("sequences", (name,)) for name in CHANCES]
    jobs += [("few", (variant, count)) for variant in (AS_IT_IS, "only what was seen") for count in SAMPLES]
    jobs += [("few", (BLIND, 0))]
    jobs += [("leaning", (BLIND, bits, 0)) for bits in LEANT]
    jobs += [("leaning", (way, bits, n)) for bits in LEANT for n in LEANT[bits] for way in (AT_THEIR_WORD, LEANING)]
    jobs = [job for job in jobs if job[0] in chosen]
    found: dict[str, list[Row]] = {name: [] for name in TABLES}
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        for (table, _), rows in zip(jobs, pool.map(measured, *zip(*jobs, strict=True)), strict=True):
            print(table, *rows, sep="\n  ", flush=True)
            found[table] += rows
    tables = {name: table for name, table in tables_of(found).items() if name in chosen}
    finish("decisions", tables, vars(options), partial=set(chosen) != set(TABLES), shown=tables)


def tables_of(found: Mapping[str, list[Row]]) -> dict[str, Table]:
    """A table for each decision."""
    few = {"calibration": "", "inputs": "d", "bits": ".3f", "divergence": ".3g", "accuracy, %": ".2f"}
    leant = {"costs": "", "bits": ".3f", "inputs": "d", "divergence": ".3g", "accuracy, %": ".2f"}
    chances = {"chances": "", "bits": ".3f", "divergence": ".3g", "bits/byte": ".4f"}
    unreached = {"network": "", "layer": "", "cost of the copy": "", "bits of the layer": ".2f", "of its copy": ".2f"}
    return {
        "few": Table(f"{LENET} at {BITS[LENET]:g} bits, from few samples", few, found["few"]),
        "leaning": Table(f"{RESNET}, costs measured on few samples", leant, found["leaning"]),
        "sequences": Table(f"{LLAMA} at {BITS[LLAMA]:g} bits, by its chances", chances, found["sequences"]),
        "unreached": Table("Bits per entry of copies that no input reaches", unreached, found["unreached"]),
    }


def measured(table: str, job: tuple[Any, ...]) -> list[Row]:
    """The rows of one job."""
    measures: dict[str, Callable[..., list[Row]]] = {
        "few": few,
        "leaning": leaning,
        "sequences": sequence,
        "unreached": unreached,
    }
    return measures[table](*job)


def few(variant: str, count: int) -> list[Row]:
    """What a network from a few samples is worth."""
    model, batches = prepared(LENET, max(1, count))
    if variant == BLIND:
        made = waterfill.compress(model, bits=BITS[LENET])
    else:
        with ExitStack() if variant == AS_IT_IS else only_seen():
            made = waterfill.compress(model, batches, bits=BITS[LENET])
    return [[variant, count, made.bits, *quality(LENET, made)]]


def leaning(way: str, bits: float, count: int) -> list[Row]:
    """What a network is worth whose few samples are taken at their word, lean on what is assumed, or are not used."""
    model, batches = prepared(RESNET, max(1, count))
    with ExitStack() as stack:
        if way == AT_THEIR_WORD:
            stack.enter_context(patch("waterfill.compression.costs.few.FEW", 0))
            stack.enter_context(patch("waterfill.compression.post_training.FEW_SAMPLES", 0))
        made = waterfill.compress(model, None if way == BLIND else batches, bits=bits)
    return [[way, made.bits, count, *quality(RESNET, made)]]


def sequence(name: str) -> list[Row]:
    """The divergence of a language model by what its errors are said to cost."""
    model, batches = prepared(LLAMA, 256)
    entropy = CHANCES[name]
    steps = Steps(importance="outputs" if entropy is None else "divergence")
    with patch("waterfill.evaluation.divergence.ENTROPY", 2.0 if entropy is None else entropy):
        made = waterfill.compress(model, batches, bits=BITS[LLAMA], options=waterfill.Options(steps=steps))
    return [[name, made.bits, *quality(LLAMA, made)]]


class Beside(nn.Module):
    """A network, and copies of some of its layers that nothing runs through."""

    def __init__(self, model: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.idle = nn.ModuleList(copy.deepcopy(model.get_submodule(name)) for name in layers)

    def forward(self, x: Tensor) -> Any:
        """What the network says."""
        return self.model(x)


def unreached(network: str, cost: str) -> list[Row]:
    """Bits per entry of layers and of their copies."""
    layers = COPIED[network]
    model, batches = prepared(network, 256)
    with patch("waterfill.compression.task.at_common_price", list) if cost == "assumed" else ExitStack():
        made = waterfill.compress(Beside(model, layers), batches, bits=BITS[network])
    return [
        [network, name, cost, spent(made, f"model.{name}."), spent(made, f"idle.{i}.")] for i, name in enumerate(layers)
    ]


def spent(made: waterfill.CompressedModel, prefix: str) -> float:
    """Bits per entry of the matrices below a name."""
    rows = [row for row in made.table() if row["name"].startswith(prefix) and len(row["shape"]) > 1]
    return 8 * sum(row["bytes"] for row in rows) / sum(torch.Size(row["shape"]).numel() for row in rows)


def prepared(network: str, count: int) -> tuple[nn.Module, list[Tensor]]:
    """A network and so many inputs for it."""
    folder = data_folder()
    return model_of(network, folder, networks()[network].state(folder)), calibration_batches(network, folder, count)


def quality(network: str, made: waterfill.CompressedModel) -> tuple[float | None, float]:
    """Divergence and quality on the test set."""
    folder = data_folder()
    known = networks()[network]
    found = known.prepare(folder, known.state(folder), False)(made.state_dict())
    return found.divergence, found.quality


@contextmanager
def only_seen() -> Iterator[None]:
    """Nothing is added to the outputs and positions that were seen, but a floor that keeps costs above zero."""
    with ExitStack() as stack:
        for place in ("waterfill.calibration.combine", "waterfill.calibration.moments"):
            stack.enter_context(
                patch(f"{place}.with_pseudo_sample", lambda rows, _: rows.clamp_min(1e-6 * float(rows.mean())))
            )
        stack.enter_context(patch("waterfill.calibration.combine._shrunk", lambda gram, _: gram))
        yield


if __name__ == "__main__":
    main()
