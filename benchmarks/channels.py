"""Channels really removed: accuracy against multiplications and measured speed, before training and after.

Each network goes from share to share of its multiplications, in channels by eights. The smaller networks are ordinary
modules in plain PyTorch, timed beside the whole one on one thread. Inputs are without labels.

    python benchmarks/channels.py [--resume] [--networks ResNet-56]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.calibration_data import SPARED, calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, data_module, finish, measured_before
from lib.networks import imagenet_scale, networks
from lib.training_data import training_batches
from torch import nn

import waterfill
from waterfill.channels.choice.plan import MACS
from waterfill.channels.options import Pruning
from waterfill.channels.work import State, Work
from waterfill.learn import Distillation, distill
from waterfill.network.running.inputs import Inputs
from waterfill.runtime import speed

RESNET, SQUEEZE = "ResNet-56", "SqueezeNet 1.1"
SHARES = {RESNET: (0.8, 0.65, 0.5, 0.35), SQUEEZE: (0.8, 0.65, 0.5, 0.4)}
INPUTS = {RESNET: 256, SQUEEZE: 64}
TRAINED = {RESNET: (0.5, 0.35)}
"""Shares that are trained too."""
EPOCHS, RATE = 0.4, 2e-3
"""Of the 50,000 training images, without labels."""
IMAGES = 5000
"""Of CIFAR-10 that accuracies are measured on; of ImageNet, all that are not for calibration."""
BATCHES = (1, 64)
"""Inputs at once that are timed."""
LOST = {RESNET: (2.0, 0.5), SQUEEZE: (1.5, 2.0)}
"""How many times as fast, at the loss of how many points."""


@dataclass(frozen=True)
class Job:
    """A network with a share of its multiplications left. epochs: of training without labels after."""

    network: str
    share: float
    epochs: float = 0.0


def plan(epochs: float = EPOCHS) -> list[Job]:
    """All rows: those without training first. epochs: of training."""
    jobs = [Job(name, share) for name, shares in SHARES.items() for share in (1.0, *shares)]
    return jobs + [Job(name, share, epochs) for name, shares in TRAINED.items() for share in shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resume", action="store_true", help="keep what the partial results hold")
    parser.add_argument("--networks", default=",".join(SHARES), help="names, separated by commas")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of training, for rows beside the planned ones")
    parser.add_argument("--device", default="cpu", help="where networks are trained, such as cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = earlier() if options.resume else {}
    for name in options.networks.split(","):
        if all(job in known for job in plan(options.epochs) if job.network == name):
            continue
        for job, row in measured(name, options.epochs, options.device):
            known[job] = row
            print(job, *row, flush=True)
            complete = all(one in known for one in plan())
            finish("channels", tables(known), vars(options), partial=not complete, shown=())
    print(tables(known)["runs"].text())


def earlier() -> dict[Job, list[Any]]:
    """What was measured before."""
    count = len(fields(Job))
    return {Job(*row[:count]): row[count:] for row in measured_before("channels", "runs")}


def measured(name: str, epochs: float, device: str) -> Iterator[tuple[Job, list[Any]]]:
    """Every row of a network, one share from the one before."""
    folder = data_folder()
    model = model_of(name, folder, networks()[name].state(folder))
    accuracy = accuracy_on(name, folder)
    batches = calibration_batches(name, folder, INPUTS[name])
    yield Job(name, 1.0), row_of(name, (model, model), accuracy(model), 1.0, 0.0)
    began = time.process_time()
    work = Work.begin(model, Inputs(batches), Pruning(rounds=1, multiple=8), MACS)
    left: State | None = None
    pruned = {}
    for share in SHARES[name]:
        left = work.reduced(share, left)
        pruned[share] = work.result(left)
        seconds = time.process_time() - began
        smaller = pruned[share].model
        yield Job(name, share), row_of(name, (model, smaller), accuracy(smaller), pruned[share].macs_share, seconds)
    for share in TRAINED.get(name, ()):
        began = time.process_time()
        teacher, student = model.to(device), pruned[share].model.to(device)
        how, inputs = Distillation(epochs=epochs, rate=RATE), training_batches(name, folder)
        distill(student, teacher, inputs, forward=lambda model, batch: model(batch[0].to(device)), how=how)
        smaller, model = student.cpu(), model.cpu()
        seconds = time.process_time() - began
        yield (
            Job(name, share, epochs),
            row_of(name, (model, smaller), accuracy(smaller), pruned[share].macs_share, seconds),
        )


def row_of(name: str, both: tuple[nn.Module, nn.Module], found: float, share: float, seconds: float) -> list[Any]:
    """Multiplications left, weights, bytes of the file, accuracy, and speed at each number of inputs with quartiles.

    both: the whole network and the smaller one.
    """
    model, smaller = both
    weights = sum(p.numel() for p in smaller.parameters())
    with tempfile.TemporaryDirectory() as place:
        size = waterfill.compress(smaller, lossless=True).save(Path(place) / "m.wf")
    return [100 * share, weights, size, found, *times(model, smaller, name), seconds]


def accuracy_on(name: str, folder: Path) -> Callable[[nn.Module], float]:
    """What measures the accuracy of a network of any widths, %."""
    images = data_module(folder, "imgpack").load
    if name == RESNET:
        pixels, labels = (values[:IMAGES] for values in images(folder / "cifar10_test.npz"))
    else:
        pixels, labels = images(folder / "imagenet_sample_250.npz")
        shown = np.arange(len(pixels)) % SPARED != 0
        pixels, labels = pixels[shown], labels[shown]
    x, scale = torch.from_numpy(pixels).permute(0, 3, 1, 2), imagenet_scale(folder)
    targets = torch.from_numpy(labels.astype(np.int64))

    @torch.inference_mode()
    def accuracy(model: nn.Module) -> float:
        right = [model(scale(piece.float())).argmax(1) for piece in x.split(50)]
        return 100 * float((torch.cat(right) == targets).double().mean())

    return accuracy


def times(model: nn.Module, smaller: nn.Module, name: str) -> list[Any]:
    """For each number of inputs at once: milliseconds, how many times as fast, and the quartiles of that."""
    side = 32 if name == RESNET else 224
    inputs = torch.randn(max(BATCHES), 3, side, side, generator=torch.Generator().manual_seed(0))
    found: list[Any] = []
    for count in BATCHES:
        whole, few = speed({"whole": model, "smaller": smaller}, [inputs], (count,))
        low, high = (whole.milliseconds / value for value in reversed(few.spread))
        found += [few.milliseconds, few.speedup, f"{low:.2f} - {high:.2f}"]
    return found


def tables(known: dict[Job, list[Any]]) -> dict[str, Table]:
    """The runs and the claims."""
    columns = {"network": "", "share": ".2f", "epochs": ".2g", "multiplications, %": ".1f", "weights": ",d"}
    columns |= {"lossless file, bytes": ",d", "accuracy, %": ".2f"}
    for count in BATCHES:
        columns |= {f"ms, {count} at once": ".2f", f"times as fast, {count}": ".2f", f"quartiles, {count}": ""}
    columns |= {"seconds": ".0f"}
    order = sorted(known, key=lambda job: (job.network, job.epochs, -job.share))
    rows = [[*asdict(job).values(), *known[job]] for job in order]
    return {"runs": Table("Channels removed", columns, rows), "claims": claims_table(claims(known))}


def claims(known: dict[Job, list[Any]]) -> list[list[Any]]:
    """The bars: the speed reached at both numbers of inputs by a network that lost no more than so many points."""
    made = []
    for name, (wanted, lost) in LOST.items():
        whole = known.get(Job(name, 1.0))
        if whole is None:
            continue
        smaller = [row for job, row in known.items() if job.network == name and job.share < 1]
        rows = [row for row in smaller if row[3] >= whole[3] - lost]
        for number, count in enumerate(BATCHES):
            fastest = max((row[5 + 3 * number] for row in rows), default=1.0)
            what = f"{name}, at most {lost:g} points lost: times as fast, {count} at once"
            made.append(claim(what, fastest, wanted, ".2f"))
    return made


if __name__ == "__main__":
    main()
