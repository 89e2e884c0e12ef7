"""Channels and blocks really removed for a speed that is measured: accuracy before training without labels and after.

What goes is chosen by the milliseconds that it saves, in times of layers at one input at once, or at 64; channels go by
eights. The smaller networks are ordinary modules in plain PyTorch, their norms folded, channels last in memory, timed
beside the whole one as it is, and beside the whole one treated alike, in turns on one thread.

    python benchmarks/channels.py [--resume] [--networks ResNet-56] [--keep FOLDER]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.calibration_data import SPARED, calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, data_module, finish, measured_before
from lib.learning_plan import ALL, DISTILLED_DEEP
from lib.networks import imagenet_scale, networks
from lib.teachers import large, student, teach
from lib.training_data import Shuffled, moved, training_batches
from lib.turns import in_turns
from torch import Tensor, nn

import waterfill
from waterfill.channels import fold_norms
from waterfill.channels.choice.plan import TIME
from waterfill.channels.options import Pruning
from waterfill.channels.work import Work, time_units
from waterfill.network.channels.macs import multiplications
from waterfill.network.running.inputs import Inputs

RESNET, SQUEEZE = "ResNet-56", "SqueezeNet 1.1"
SHARES = {RESNET: {1: (0.75, 0.66), 64: (0.6,)}, SQUEEZE: {1: (0.95, 0.85, 0.75)}}
"""Of the time that layers take at so many inputs at once."""
BLOCKS = {1: True, 64: False}
"""Whether whole blocks may go: where calls take the time."""
INPUTS = {RESNET: 128, SQUEEZE: 64}
ROUNDS = {RESNET: 2, SQUEEZE: 1}
TRAINED = {RESNET: {1: (0.66,)}, SQUEEZE: {1: (0.95, 0.85)}}
"""Of these the networks that are trained too."""
EPOCHS = {RESNET: 20.0, SQUEEZE: 6.0}
"""Of the 50,000 training images, without labels; of the 63 images for calibration."""
TAUGHT = {RESNET: ((1, 0.66, 14.0, ALL), (1, 0.66, 0.0, ALL, DISTILLED_DEEP), (1, 0.66, 20.0, ALL, DISTILLED_DEEP))}
"""Networks that have others as their teachers: inputs at once, share, passes, teachers, and passes of the whole one."""
RATE = {RESNET: 0.01, SQUEEZE: 1e-4}
"""Of SGD at first: at 0.02 the loss of the pruned ResNet-56 rises before it falls, and 0.05 forgets what it knew."""
IMAGES = 5000
"""Of CIFAR-10 that accuracies are measured on; of ImageNet, all that are not for calibration."""
BATCHES = (1, 64)
"""Inputs at once that are timed."""
LOST = {RESNET: (2.0, 0.5), SQUEEZE: (1.5, 2.0)}
"""How many times as fast, at the loss of how many points."""
_TURNS, _SECONDS, _SECONDS_KEPT = 25, 10.0, ".seconds"
_PAD = 16  # pixels that images of ImageNet are shifted by, at most


@dataclass(frozen=True)
class Job:
    """A network made for so many inputs at once, with a share of its time left; `batch` 0: the whole one.

    epochs: of training without labels after. teacher: "" for the whole network, or others. distilled: epochs in which
    the whole network learned from these before channels were removed.
    """

    network: str
    batch: int = 0
    share: float = 1.0
    epochs: float = 0.0
    teacher: str = ""
    distilled: int = 0


def plan(epochs: float | None = None) -> list[Job]:
    """All rows, in order. epochs: of training, where others than planned."""
    jobs = []
    for name, each in SHARES.items():
        jobs.append(Job(name))
        for batch, share in ((batch, share) for batch, shares in each.items() for share in shares):
            trained = [EPOCHS[name] if epochs is None else epochs] * (share in TRAINED[name].get(batch, ()))
            jobs += [Job(name, batch, share, some) for some in (0.0, *trained)]
        jobs += [Job(name, *taught) for taught in TAUGHT.get(name, ())]
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resume", action="store_true", help="keep what the results hold")
    parser.add_argument("--networks", default=",".join(SHARES), help="names, separated by commas")
    parser.add_argument("--epochs", type=float, help="of training, for rows beside the planned ones")
    parser.add_argument("--device", default="cpu", help="where networks are trained, such as cuda")
    parser.add_argument("--keep", type=Path, help="a folder where smaller networks are kept, and found again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    known = earlier() if options.resume else {}
    for name in options.networks.split(","):
        jobs = [job for job in plan(options.epochs) if job.network == name and job not in known]
        for job, row in Measuring(name, options.keep, options.device).rows(jobs) if jobs else ():
            known[job] = row
            print(job, *row, flush=True)
            complete = all(one in known for one in plan())
            told = {key: value for key, value in vars(options).items() if key != "keep"}
            finish("channels", tables(known), told, partial=not complete, shown=())
    print(tables(known)["runs"].text())


def earlier() -> dict[Job, list[Any]]:
    """What was measured before."""
    count = len(fields(Job))
    return {Job(*row[:count]): row[count:] for row in measured_before("channels", "runs")}


class Measuring:
    """The rows of a network. keep: a folder of smaller networks. device: where networks are trained."""

    def __init__(self, name: str, keep: Path | None, device: str) -> None:
        self.name, self.folder, self.keep, self.device = name, data_folder(), keep, device
        self.model = ordered(model_of(name, self.folder, networks()[name].state(self.folder)))
        self.accuracy = accuracy_on(name, self.folder)
        self._works: dict[int, Work] = {}

    def rows(self, jobs: list[Job]) -> Iterator[tuple[Job, list[Any]]]:
        """Every row, one after the other."""
        for job in jobs:
            smaller, seconds = self.smaller(job) if job.batch else (self.model, 0.0)
            yield job, self.row(smaller, seconds)

    def smaller(self, job: Job) -> tuple[nn.Module, float]:
        """The network of a job and the processor seconds of its last step, made here or kept from a run before."""
        path = None if self.keep is None else self.keep / f"{_name_of(job)}.wf"
        if path is not None and path.with_suffix(_SECONDS_KEPT).is_file():
            new = model_of(self.name, self.folder, networks()[self.name].state(self.folder))
            return ordered(waterfill.load(path).install(new)), float(path.with_suffix(_SECONDS_KEPT).read_text())
        before = self.smaller(replace(job, epochs=0.0))[0] if job.epochs else self.whole(job)
        began = time.process_time()
        made = self.trained(before, job) if job.epochs else self.pruned(before, job)
        seconds = time.process_time() - began
        if path is not None:
            waterfill.compress(made, lossless=True).save(path, force=True)
            path.with_suffix(_SECONDS_KEPT).write_text(f"{seconds}")
        return ordered(made), seconds

    def whole(self, job: Job) -> nn.Module:
        """The network that channels are removed from."""
        if not job.distilled:
            return self.model
        return ordered(student(job.network, job.teacher, job.distilled, torch.device(self.device), self.keep)[0].cpu())

    def pruned(self, whole: nn.Module, job: Job) -> nn.Module:
        """The network of a job before training."""
        how = Pruning(rounds=ROUNDS[job.network], multiple=8, batch=job.batch, fold=True)
        if job.distilled not in self._works:
            calibrating = [ordered(x) for x in batches_of(self.name, self.folder)]
            self._works[job.distilled] = Work.begin(whole, Inputs(calibrating), replace(how, blocks=True), TIME)
        work = self._works[job.distilled]
        blocks = work.blocks if BLOCKS[job.batch] else []
        units = time_units(work.original, how, blocks)
        return replace(work, units=units, blocks=blocks, how=replace(how, fold=False)).pruned(job.share).model

    def trained(self, made: nn.Module, job: Job) -> nn.Module:
        """A smaller network after it has learned to say what the whole one or other teachers say."""
        device = torch.device(self.device)
        teacher = large(job.teacher, device) if job.teacher else deployed(self.model, self.name).to(device)
        inputs = training_inputs(self.name, self.folder, device)
        teach(made.to(device), teacher, inputs, job.epochs, RATE[self.name])
        return made.cpu()

    def row(self, smaller: nn.Module, seconds: float) -> list[Any]:
        """What is left of calls and multiplications, weights, bytes of the file, accuracy, and times."""
        quick, one = deployed(smaller, self.name), picture(self.name, 1)
        share = multiplications(smaller, one) / multiplications(self.model, one)
        with tempfile.TemporaryDirectory() as place:
            size = waterfill.compress(quick, lossless=True).save(Path(place) / "m.wf")
        layers = sum(isinstance(module, nn.Conv2d) for module in quick.modules())
        weights = sum(p.numel() for p in quick.parameters())
        return [layers, 100 * share, weights, size, self.accuracy(quick), *times(self.model, quick, self.name), seconds]


def _name_of(job: Job) -> str:
    """Of the file that a network is kept in."""
    trained = f" {job.epochs:g}" if job.epochs else ""
    taught = f" by {job.teacher}" if job.teacher and (job.epochs or job.distilled) else ""
    distilled = f" after {job.distilled}" if job.distilled else ""
    return f"{job.network} {job.batch} {job.share:g}{trained}{taught}{distilled}"


def ordered(value: Any) -> Any:
    """A module or images with channels last in memory."""
    return value.to(memory_format=torch.channels_last)


def deployed(model: nn.Module, name: str) -> nn.Module:
    """A network as it is timed: its norms folded, channels last."""
    return ordered(fold_norms(model, picture(name, 2)))


def picture(name: str, count: int) -> Tensor:
    """Images of noise, in the size of a network."""
    side = 32 if name == RESNET else 224
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def batches_of(name: str, folder: Path) -> list[Tensor]:
    """Inputs to calibrate with; where there are few, each is there twice, once mirrored and shifted."""
    images = torch.cat(calibration_batches(name, folder, INPUTS[name]))
    if name != RESNET:
        torch.manual_seed(0)
        images = torch.cat([images, moved(images, _PAD)])
    return list(images.split(max(BATCHES)))


def training_inputs(name: str, folder: Path, device: torch.device) -> Any:
    """Batches of (images, labels that nobody looks at), mirrored and shifted anew in each pass."""
    if name == RESNET:
        return training_batches(name, folder, device)
    images = torch.cat(calibration_batches(name, folder, INPUTS[name]))
    return Shuffled(images, torch.zeros(len(images), dtype=torch.int64), lambda x: moved(x, _PAD), 16)


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
        right = [model(ordered(scale(piece.float()))).argmax(1) for piece in x.split(50)]
        return 100 * float((torch.cat(right) == targets).double().mean())

    return accuracy


def times(model: nn.Module, smaller: nn.Module, name: str) -> list[Any]:
    """For each number of inputs at once: milliseconds, how many times as fast as the whole network as it is, and as the
    whole one with norms folded and channels last."""
    plain = model_of(name, data_folder(), model.state_dict())
    models = {"whole": plain, "alike": deployed(model, name), "smaller": smaller}
    found: list[Any] = []
    for count in BATCHES:
        x = picture(name, count)
        actions = {key: (lambda net=net, x=x: net(x)) for key, net in models.items()}
        with torch.inference_mode():
            for action in actions.values():
                action()
            took = in_turns(actions, _TURNS, _SECONDS)
        found += [1e3 * took["smaller"], took["whole"] / took["smaller"], took["alike"] / took["smaller"]]
    return found


def tables(known: dict[Job, list[Any]]) -> dict[str, Table]:
    """The runs and the claims."""
    columns = {"network": "", "for, at once": "d", "share of time": ".2f", "epochs": ".2g"}
    columns |= {"teacher": "", "distilled": "d", "convolutions": "d"}
    columns |= {"multiplications, %": ".1f", "weights": ",d", "lossless file, bytes": ",d", "accuracy, %": ".2f"}
    for count in BATCHES:
        columns |= {
            f"ms, {count} at once": ".2f",
            f"times as fast, {count}": ".2f",
            f"than whole alike, {count}": ".2f",
        }
    columns |= {"seconds": ".0f"}
    order = sorted(known, key=lambda job: (job.network, job.batch, -job.share, job.epochs, job.teacher, job.distilled))
    rows = [[*asdict(job).values(), *known[job]] for job in order]
    return {"runs": Table("Channels removed", columns, rows), "claims": claims_table(claims(known))}


def claims(known: dict[Job, list[Any]]) -> list[list[Any]]:
    """The bars: the speed reached at both numbers of inputs by a network without some of its channels that lost no more
    than so many points; 0 where there is none."""
    made = []
    for name, (wanted, lost) in LOST.items():
        whole = known.get(Job(name))
        if whole is None:
            continue
        rows = [row for job, row in known.items() if job.network == name and job.batch and row[4] >= whole[4] - lost]
        for number, count in enumerate(BATCHES):
            what = f"{name}, at most {lost:g} points lost: times as fast, {count} at once"
            for column, than in ((6, ""), (7, ", than the whole one folded and channels last too")):
                fastest = max((row[column + 3 * number] for row in rows), default=0.0)
                made.append(claim(what + than, fastest, wanted, ".2f"))
    return made


if __name__ == "__main__":
    main()
