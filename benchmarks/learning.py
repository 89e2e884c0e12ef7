"""Networks trained in compressed form: LC by the book, codes that follow the weights, with labels and without.

One row at a time; what is known is written after each, and `--resume` goes on. Beside every network stands the
uncompressed one after the same extra training. Sizes are those of the files.

    python benchmarks/learning.py [--resume] [--networks LeNet-300-100] [--only TEXT] [--students FOLDER]
"""

import argparse
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lib import lc_loop
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish, measured_before
from lib.learning_plan import (
    BIT,
    BOTH,
    BY_THE_BOOK,
    DEEP,
    EXTRA,
    FLOAT,
    LENET,
    NETWORKS,
    PAPER,
    PLAIN,
    RESNET,
    ROUNDED,
    SPARSE,
    SUM,
    TEXT,
    Job,
    plan,
)
from lib.networks import networks
from lib.teachers import large, student
from lib.training_data import training_batches
from opponents import gptq
from torch import Tensor, nn

import waterfill
from waterfill import Budget, Options
from waterfill.learn import Imitation, Training, run

INPUTS = 256
"""Those that compressing without training is calibrated with."""
LAST, SHORT = 0.1, {6: 2 / 3}
"""Share of the passes in which codes are frozen; by passes, of networks that were distilled before."""
C_STEPS = {("straight-through", RESNET): 2, ("straight-through", DEEP): 2, ("lc", RESNET): 1, ("lc", LENET): 1}
"""In an epoch; of other networks 8."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resume", action="store_true", help="keep what the partial results hold")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, separated by commas")
    parser.add_argument("--only", default="", help="only trainings whose description has this text")
    parser.add_argument("--device", default="cpu", help="where networks are trained, such as cuda")
    parser.add_argument("--students", type=Path, help="a folder where distilled networks are kept, and found again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = earlier() if options.resume else {}
    wanted = [job for job in plan() if job.network in options.networks.split(",") and options.only in repr(job)]
    for job in wanted:
        if job not in known:
            known[job] = measured(job, torch.device(options.device), options.students)
            print(job, *known[job], flush=True)
            complete = all(one in known for one in plan())
            told = {key: value for key, value in vars(options).items() if key != "students"}
            finish("learning", tables(known), told, partial=not complete, shown=())
    print(tables(known)["runs"].text())


def earlier() -> dict[Job, list[Any]]:
    """What was measured before."""
    count = len(fields(Job))
    return {Job(*row[:count]): row[count:] for row in measured_before("learning", "runs")}


def measured(job: Job, device: torch.device, students: Path | None = None) -> list[Any]:
    """Bytes of the file, times smaller, quality, divergence, seconds, where, and why there is nothing.

    students: a folder of distilled networks.
    """
    folder = data_folder()
    network = networks()[job.network]
    state = network.state(folder)
    evaluate = network.prepare(folder, state, False)
    model = model_of(job.network, folder, state).to(device)
    if job.distilled:
        model, distilling = student(job.network, job.teacher, job.distilled, device, students)
    began = time.process_time()  # one thread: what a quiet machine takes
    if job.method == EXTRA:
        if not job.distilled:
            train(model, job, folder)
        seconds = distilling if job.distilled else time.process_time() - began
        restored, size = model.cpu().state_dict(), None
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
    teacher = large(job.teacher, next(model.parameters()).device) if job.teacher else None
    if job.network == RESNET and job.method == "lc":  # with its norms, as the published figure
        training = replace(training, last=BY_THE_BOOK[job.epochs])
        return lc_loop.by_the_book(
            model, batches, job.recipe, training, loss=lambda net, batch: loss(net, batch, teacher)
        )
    return run(
        model,
        batches,
        budget=Budget(ratio=job.ratio),
        spec=job.recipe or None,
        loss=(lambda outputs, batch: loss_of(outputs, batch[1])) if job.labels else None,
        forward=lambda model, batch: model(beside(model, batch[0])),
        teacher=teacher,
        training=training,
        options=Options(threads=1),
    )


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


def loss(model: nn.Module, batch: tuple[Tensor, Tensor], teacher: nn.Module | None) -> Tensor:
    """The distance to what a teacher says, or to labels."""
    if teacher is None:
        return loss_of(model(batch[0]).float(), batch[1])
    with torch.no_grad():
        expected = teacher(batch[0])
    return Imitation()(model(batch[0]), expected)


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
    """The bars of what is measured so far: errors in %, of trainings that differ only in their seed the mean."""
    bars = {
        ("lc", BIT, None, LENET): 2.66,
        ("lc", SPARSE, None, LENET): 2.28,
        ("lc", SUM, None, LENET): 2.27,
        ("straight-through", "", 100.0, LENET): 2.13,
        ("lc", PAPER, None, RESNET): 8.56,
        ("straight-through", "", 24.0, RESNET): 8.26,
        ("straight-through", "", 32.0, RESNET): 8.8,
        ("straight-through", "", 26.0, DEEP): 6.61,
    }
    made, quality = [], over_seeds(known)
    for (method, recipe, ratio, network), bar in bars.items():
        errors = [
            100 - mean
            for job, mean in quality.items()
            if (job.method, job.recipe, job.ratio, job.network) == (method, recipe, ratio, network)
        ]
        size = f" at {ratio:g}x" if ratio else ""
        if errors:
            what = ", ".join(filter(None, (network, method, recipe)))
            made.append(claim(f"{what}{size}: error, %", min(errors), bar, ".2f", at_most=True))
    both = {job.labels: mean for job, mean in quality.items() if replace(job, labels=False) == BOTH}
    if len(both) == 2:
        gain = both[True] - both[False]
        made.append(claim("ResNet-20 at 24x, 5 passes: points that labels bring", gain, 0.3, ".2f", at_most=True))
    for network in TEXT:
        at: dict[str, float] = {}
        for job, mean in ((job, mean) for job, mean in quality.items() if job.network == network):
            at[job.method] = min(mean, at.get(job.method, mean))
        if {FLOAT, PLAIN, "straight-through"} <= set(at):
            share = (at["straight-through"] - at[FLOAT]) / (at[PLAIN] - at[FLOAT])
            what = f"{network} at 16x: share left of the loss without training"
            made.append(claim(what, share, 0.5, ".2f", at_most=True))
    return made


def over_seeds(known: dict[Job, list[Any]]) -> dict[Job, float]:
    """The mean quality over seeds, by the job of seed 0."""
    found: dict[Job, list[float]] = {}
    for job, row in known.items():
        if row[2] is not None:
            found.setdefault(replace(job, seed=0), []).append(row[2])
    return {job: sum(values) / len(values) for job, values in found.items()}


if __name__ == "__main__":
    main()
