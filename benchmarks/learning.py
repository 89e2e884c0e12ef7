"""Networks trained in compressed form: LC by the book, codes that follow the weights, with labels and without.

One row at a time; what is known is written after each, and `--resume` goes on. Beside every network stands the
uncompressed one after the same extra training. Sizes are those of the files.

    python benchmarks/learning.py [--resume] [--networks LeNet-300-100] [--only TEXT]
"""

import argparse
import copy
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lib import lc_loop
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish, measured_before
from lib.networks import networks
from lib.training_data import training_batches
from opponents import gptq
from torch import Tensor, nn

import waterfill
from waterfill import Budget, Options
from waterfill.channels import fold_norms
from waterfill.learn import Distillation, Training, distill, run

LENET, RESNET, DEEP, LSTM, LLAMA = "LeNet-300-100", "ResNet-20", "ResNet-56", "LSTM 2x128", "Llama 260K"
BIT, SPARSE = "Codebook(levels=2)", "Prune(keep=0.05)"
SUM, PAPER = "Codebook(levels=2) + Prune(keep=0.01)", "Codebook(levels=2) + Prune(keep=0.03)"
FLOAT, EXTRA, PLAIN, ROUNDED = "float32", "uncompressed", "compress", "rounding g128"
"""The network as it is, after as much more training, ours without training, and plain quantization in no more bytes."""
NETWORKS, INPUTS = (LENET, RESNET, LSTM, LLAMA, DEEP), 256
"""Inputs: those that compressing without training is calibrated with."""
TEXT = {LSTM: (2, 6e-3), LLAMA: (2, 4e-3)}
"""Networks of text, the passes through it and the rate at first."""
LONGER = (4, 6e-3)
"""Of the LSTM, likewise."""
LONG = {RESNET: 22, DEEP: 6}
"""Networks for a GPU, and the passes through their images; of the largest file half as many."""
LARGEST = 13.84
TAUGHT, DISTILLED = 30, 40
"""Passes of ResNet-20 with ResNet-56 as its teacher: in compressed form, and before it is compressed."""
LAST, SHORT = 0.1, {6: 2 / 3}
"""Share of the passes in which codes are frozen; by passes, of networks that were distilled before."""
C_STEPS = {("straight-through", RESNET): 2, ("straight-through", DEEP): 2, ("lc", RESNET): 2, ("lc", LENET): 1}
"""In an epoch; of other networks 8."""


@dataclass(frozen=True)
class Job:
    """A training. method: of `Training`, or one without compression or training. recipe: "" for the default. ratio: of
    the file; None where the recipe decides. teacher: the network that is imitated where that is another one; both then
    run in bfloat16. distilled: passes in which the network learned from its teacher before it was compressed."""

    network: str
    method: str
    recipe: str = ""
    ratio: float | None = None
    epochs: int = 10
    rate: float = 2e-3
    labels: bool = False
    seed: int = 0
    teacher: str = ""
    distilled: int = 0


BOTH = Job(RESNET, "straight-through", ratio=24.0, epochs=5)
"""What is trained with labels too."""


def plan() -> list[Job]:
    """All trainings, the shortest first."""
    lc = Job(LENET, "lc", BIT, epochs=80, rate=0.05, labels=True)
    through = Job(LENET, "straight-through", ratio=100.0, epochs=40, rate=3e-2, labels=True)
    resnet = BOTH
    long = replace(resnet, epochs=LONG[RESNET], rate=5e-3)
    distilled = Job(RESNET, PLAIN, epochs=0, teacher=DEEP, distilled=DISTILLED)
    taught = replace(resnet, epochs=TAUGHT, rate=5e-3, teacher=DEEP)
    text = [Job(name, "straight-through", ratio=16.0, epochs=count, rate=rate) for name, (count, rate) in TEXT.items()]
    trained = [
        *(replace(lc, recipe=recipe) for recipe in (BIT, SPARSE, SUM)),
        *text,
        Job(LSTM, "straight-through", ratio=16.0, epochs=LONGER[0], rate=LONGER[1]),
        *(replace(through, ratio=ratio) for ratio in (100.0, 130.0)),
        replace(through, epochs=80, rate=2e-3, labels=False),
        *(replace(resnet, ratio=ratio) for ratio in (24.0, 32.0, LARGEST)),
        replace(resnet, labels=True),
        Job(RESNET, "lc", PAPER, epochs=20, rate=0.02, labels=True),
        *(replace(long, ratio=ratio) for ratio in (24.0, 32.0)),
        replace(long, ratio=LARGEST, epochs=LONG[RESNET] // 2),
        replace(long, network=DEEP, ratio=26.0, epochs=LONG[DEEP]),
        replace(taught, ratio=24.0),
    ]
    sizes = dict.fromkeys((job.network, job.ratio) for job in trained if job.ratio)
    return [
        *(Job(name, FLOAT, epochs=0) for name in NETWORKS),
        Job(LENET, EXTRA, epochs=40, rate=0.01, labels=True),
        *(Job(name, method, ratio=ratio, epochs=0) for name, ratio in sizes for method in (PLAIN, ROUNDED)),
        *(Job(name, EXTRA, epochs=count, rate=0.01, labels=True) for name, (count, _) in TEXT.items()),
        *trained,
        *(Job(name, EXTRA, epochs=count, rate=1e-3, labels=True) for name, count in ((RESNET, 5), *LONG.items())),
        replace(distilled, method=EXTRA),
        *(replace(distilled, ratio=ratio) for ratio in (13.84, 24.0, 32.0)),
        *(replace(distilled, method="straight-through", ratio=ratio, epochs=6, rate=5e-3) for ratio in (24.0, 32.0)),
        replace(distilled, method="straight-through", ratio=32.0, epochs=LONG[RESNET], rate=5e-3),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resume", action="store_true", help="keep what the partial results hold")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, separated by commas")
    parser.add_argument("--only", default="", help="only trainings whose description has this text")
    parser.add_argument("--device", default="cpu", help="where networks are trained, such as cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = earlier() if options.resume else {}
    wanted = [job for job in plan() if job.network in options.networks.split(",") and options.only in repr(job)]
    for job in wanted:
        if job not in known:
            known[job] = measured(job, torch.device(options.device))
            print(job, *known[job], flush=True)
            complete = all(one in known for one in plan())
            finish("learning", tables(known), vars(options), partial=not complete, shown=())
    print(tables(known)["runs"].text())


def earlier() -> dict[Job, list[Any]]:
    """What was measured before."""
    count = len(fields(Job))
    return {Job(*row[:count]): row[count:] for row in measured_before("learning", "runs")}


def measured(job: Job, device: torch.device) -> list[Any]:
    """Bytes of the file, times smaller, quality, divergence, seconds, where, and why there is nothing."""
    folder = data_folder()
    network = networks()[job.network]
    state = network.state(folder)
    evaluate = network.prepare(folder, state, False)
    model = model_of(job.network, folder, state).to(device)
    began = time.process_time()  # one thread: what a quiet machine takes
    if job.distilled:
        model = copy.deepcopy(student(job.network, job.teacher, job.distilled, device))
    if job.method == EXTRA:
        if not job.distilled:
            train(model, job, folder)
        seconds, restored, size = time.process_time() - began, model.cpu().state_dict(), None
    elif job.method == FLOAT:
        seconds, restored, size = 0.0, state, None
    elif job.method == ROUNDED:
        budget = int(sum(t.numel() * t.element_size() for t in state.values()) / (job.ratio or 1))
        try:
            seconds, (size, restored) = 0.0, gptq.Opponent(state, {}).within(budget)
        except ValueError as error:  # below one bit in such a format
            return [None, job.ratio, None, None, 0.0, device.type, f"{error}"]
    else:
        made = plain(model, job, folder) if job.method == PLAIN else learned(model, job, folder)
        seconds = time.process_time() - began
        with tempfile.TemporaryDirectory() as place:
            size = made.save(Path(place) / "m.wf")
            restored = waterfill.load(Path(place) / "m.wf").state_dict()
    original = sum(t.numel() * t.element_size() for t in state.values())
    found = evaluate(restored)
    return [size, original / size if size else None, found.quality, found.divergence, seconds, device.type, ""]


def plain(model: nn.Module, job: Job, folder: Path) -> waterfill.CompressedModel:
    """The network compressed without training."""
    inputs = calibration_batches(job.network, folder, INPUTS)
    return waterfill.compress(model, inputs, ratio=job.ratio, forward=lambda model, batch: model(beside(model, batch)))


def learned(model: nn.Module, job: Job, folder: Path) -> waterfill.CompressedModel:
    """The network after its training."""
    last = SHORT.get(job.epochs, LAST) if job.distilled else LAST
    how = (C_STEPS.get((job.method, job.network), 8), last, job.method)
    training = Training(job.epochs, job.rate, *how, seed=job.seed, bfloat16=bool(job.teacher))
    batches = training_batches(job.network, folder, next(model.parameters()).device)
    if job.network == RESNET and job.method == "lc":  # with its norms, as the published figure
        return lc_loop.by_the_book(model, batches, job.recipe, replace(training, last=lc_loop.LAST))
    return run(
        model,
        batches,
        budget=Budget(ratio=job.ratio),
        spec=job.recipe or None,
        loss=(lambda outputs, batch: loss_of(outputs, batch[1])) if job.labels else None,
        forward=lambda model, batch: model(beside(model, batch[0])),
        teacher=large(job.teacher, next(model.parameters()).device) if job.teacher else None,
        training=training,
        options=Options(threads=1),
    )


def large(name: str, device: torch.device) -> nn.Module:
    """A network that others imitate, its norms folded."""
    folder = data_folder()
    model = model_of(name, folder, networks()[name].state(folder))
    return fold_norms(model, *calibration_batches(name, folder, 2)).to(device)


def train(model: nn.Module, job: Job, folder: Path) -> None:
    """The uncompressed network for as many epochs more, in evaluation mode, as those that are compressed."""
    optimizer = torch.optim.SGD(model.parameters(), job.rate, momentum=0.9)
    batches = training_batches(job.network, folder, next(model.parameters()).device)
    steps, step = job.epochs * len(batches), 0
    torch.manual_seed(job.seed)
    for _ in range(job.epochs):
        for x, y in batches:
            optimizer.param_groups[0]["lr"] = job.rate * (1 - step / steps)
            optimizer.zero_grad()
            loss_of(model(beside(model, x)), y).backward()
            optimizer.step()
            step += 1


@cache
def student(network: str, teacher: str, epochs: int, device: torch.device) -> nn.Module:
    """The uncompressed network after it has learned from a larger one, in bfloat16 and without labels."""
    folder = data_folder()
    model = model_of(network, folder, networks()[network].state(folder)).to(device)

    def forward(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            outputs: Tensor = model(beside(model, batch[0]))
        return outputs

    def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)

    how = Distillation(epochs, optimizer=optimizer)
    batches = training_batches(network, folder, device)
    return distill(model, large(teacher, device), batches, forward=forward, how=how)


def beside(model: nn.Module, x: Tensor) -> Tensor:
    """Inputs, on the device of the network."""
    return x.to(next(model.parameters()).device, non_blocking=True)


def loss_of(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy, of each place of a sequence too."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten().to(logits.device))


def tables(known: dict[Job, list[Any]]) -> dict[str, Table]:
    """The runs and the claims."""
    forms = {"ratio": ".4g", "rate": ".2g", "epochs": "d", "labels": "", "seed": "d", "distilled": "d"}
    columns = {field.name: forms.get(field.name, "") for field in fields(Job)}
    columns |= {"bytes": "d", "times smaller": ".2f", "quality": ".3f", "divergence": ".3g", "seconds": ".0f"}
    columns |= {"on": "", "failed": ""}
    rows = [[*asdict(job).values(), *known[job]] for job in plan() if job in known]
    return {"runs": Table("Trained in compressed form", columns, rows), "claims": claims_table(claims(known))}


def claims(known: dict[Job, list[Any]]) -> list[list[Any]]:
    """The bars of what is measured so far: errors in %."""
    bars = {
        ("lc", BIT, None, LENET): 2.66,
        ("lc", SPARSE, None, LENET): 2.28,
        ("lc", SUM, None, LENET): 2.27,
        ("straight-through", "", 100.0, LENET): 2.13,
        ("lc", PAPER, None, RESNET): 8.56,
        ("straight-through", "", 24.0, RESNET): 8.26,
        ("straight-through", "", 32.0, RESNET): 8.8,
    }
    made = []
    for (method, recipe, ratio, network), bar in bars.items():
        errors = [
            100 - row[2]
            for job, row in known.items()
            if (job.method, job.recipe, job.ratio, job.network) == (method, recipe, ratio, network)
        ]
        size = f" at {ratio:g}x" if ratio else ""
        if errors:
            what = ", ".join(filter(None, (network, method, recipe)))
            made.append(claim(f"{what}{size}: error, %", min(errors), bar, ".2f", at_most=True))
    both = {job.labels: row[2] for job, row in known.items() if replace(job, labels=False) == BOTH}
    if len(both) == 2:
        gain = both[True] - both[False]
        made.append(claim("ResNet-20 at 24x, 5 passes: points that labels bring", gain, 0.3, ".2f", at_most=True))
    for network in TEXT:
        at: dict[str, float] = {}
        for job, row in ((job, row) for job, row in known.items() if job.network == network):
            at[job.method] = min(row[2], at.get(job.method, row[2]))
        if {FLOAT, PLAIN, "straight-through"} <= set(at):
            share = (at["straight-through"] - at[FLOAT]) / (at[PLAIN] - at[FLOAT])
            what = f"{network} at 16x: share left of the loss without training"
            made.append(claim(what, share, 0.5, ".2f", at_most=True))
    return made


if __name__ == "__main__":
    main()
