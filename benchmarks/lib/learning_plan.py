"""The trainings of `learning.py`: which networks, how, and what stands beside them."""

from dataclasses import dataclass, replace

LENET, RESNET, DEEP, LSTM, LLAMA = "LeNet-300-100", "ResNet-20", "ResNet-56", "LSTM 2x128", "Llama 260K"
BIT, SPARSE = "Codebook(levels=2)", "Prune(keep=0.05)"
SUM, PAPER = "Codebook(levels=2) + Prune(keep=0.01)", "Codebook(levels=2) + Prune(keep=0.03)"
FLOAT, EXTRA, PLAIN, ROUNDED = "float32", "uncompressed", "compress", "rounding g128"
"""The network as it is, after as much more training, ours without training, and plain quantization in no more bytes."""
NETWORKS = (LENET, RESNET, LSTM, LLAMA, DEEP)
ALL = "ResNet-20 + ResNet-32 + ResNet-56"
"""Teachers whose logits are averaged."""
TEXT = {LSTM: (2, 6e-3), LLAMA: (2, 4e-3)}
"""Networks of text, the passes through it and the rate at first."""
LONGER = (4, 6e-3)
"""Of the LSTM, likewise."""
LONG = {RESNET: 22, DEEP: 6}
"""Networks for a GPU, and the passes through their images; of the largest file half as many."""
LARGEST = 13.84
TAUGHT, DISTILLED = 30, 40
"""Passes of ResNet-20 with ResNet-56 as its teacher: in compressed form, and before it is compressed."""
DISTILLED_DEEP, TAUGHT_DEEP = 18, 10
"""Passes of ResNet-56 with all three ResNets as its teacher: before it is compressed, and in compressed form."""
BY_THE_BOOK = {45: 0.0, 60: 0.25}
"""Passes of ResNet-20 in the LC algorithm, and the share of them after it, in which codes are frozen. The first 45 of
the longer training are those of the shorter one."""


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
        *after_distillation(),
        *(replace(job, seed=1) for job in (lc, replace(lc, recipe=SUM), text[0])),
    ]


def after_distillation() -> list[Job]:
    """Networks that learned from larger or several ones before they were compressed, the uncompressed ones first."""
    small = Job(RESNET, PLAIN, epochs=0, teacher=DEEP, distilled=DISTILLED)
    deep = Job(DEEP, PLAIN, ratio=26.0, epochs=0, teacher=ALL, distilled=DISTILLED_DEEP)
    long = replace(small, method="straight-through", ratio=32.0, epochs=LONG[RESNET], rate=5e-3)
    return [
        replace(small, method=EXTRA),
        *(replace(small, ratio=ratio) for ratio in (LARGEST, 24.0, 32.0)),
        *(replace(long, ratio=ratio, epochs=6) for ratio in (24.0, 32.0)),
        replace(long, ratio=24.0, epochs=6, seed=1),
        long,
        *(replace(small, method="lc", recipe=PAPER, epochs=count, rate=0.02) for count in BY_THE_BOOK),
        replace(deep, method=EXTRA, ratio=None),
        deep,
        replace(deep, method="straight-through", epochs=TAUGHT_DEEP, rate=5e-3),
    ]
