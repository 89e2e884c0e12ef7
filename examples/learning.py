"""The LC algorithm in a training loop of your own: one bit for every weight, and a few entries more.

python examples/learning.py [EPOCHS]
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from waterfill.learn import LC, Schedule


def main(epochs: str = "30") -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    prototypes = torch.randn(10, 32)
    train, test = samples(prototypes, 4096), samples(prototypes, 4096)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(6):
        for x, y in zip(train[0].split(64), train[1].split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    print(f"trained: {accuracy(net, test):.1f} %")

    lc = LC(net, "Codebook(levels=2) + Prune(keep=0.02)", schedule=Schedule(growth=1.2))
    lc.start(lambda: F.cross_entropy(net(train[0][:512]), train[1][:512]))  # a first C step, and the penalty's weight
    print(f"compressed at once: {accuracy(lc.result().install(copy_of(net)), test):.1f} %")
    optimizer = torch.optim.SGD(lc.parameters(), lr=0.05, momentum=0.9)
    for _ in range(int(epochs)):
        optimizer.param_groups[0]["lr"] = lc.learning_rate(0.05)
        for x, y in zip(train[0].split(64), train[1].split(64), strict=True):  # L step
            optimizer.zero_grad()
            (F.cross_entropy(net(x), y) + lc.penalty()).backward()
            optimizer.step()
        lc.c_step()
        lc.multipliers_step()
    small = lc.result()
    print(f"learned: {accuracy(small.install(copy_of(net)), test):.1f} % in {small.size} bytes, {small.bits:.2f} bits")


def samples(prototypes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, len(prototypes), (count,))
    return prototypes[labels] + 1.3 * torch.randn(count, prototypes.shape[1]), labels


def copy_of(net: nn.Sequential) -> nn.Sequential:
    layers = [nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else nn.ReLU() for m in net]
    return nn.Sequential(*layers)


def accuracy(net: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return 100 * float((net(test[0]).argmax(1) == test[1]).float().mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
