"""A small student learns from a large teacher, without labels, and is then compressed: the two compose.

python examples/distillation.py [EPOCHS]
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import waterfill
from waterfill.learn import Distillation, distill


def main(epochs: str = "10") -> None:
    torch.manual_seed(0)
    prototypes = torch.randn(10, 32)
    (x, y), test = samples(prototypes, 4096), samples(prototypes, 4096)
    teacher = network(128)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-3)
    for _ in range(6):
        for images, labels in zip(x.split(64), y.split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(teacher(images), labels).backward()
            optimizer.step()
    teacher.eval()

    how = Distillation(epochs=float(epochs), rate=5e-3, features={"2": "2"})  # the student's third layer sees as much
    student = distill(network(24), teacher, x.split(64), how=how)
    small = waterfill.compress(student, x.split(256)[:2], bits=4)
    rows = {
        "teacher": (teacher, 4 * sum(p.numel() for p in teacher.parameters())),
        "student": (student, 4 * sum(p.numel() for p in student.parameters())),
        "student, compressed": (small.install(network(24)).eval(), small.size),
    }
    for name, (net, size) in rows.items():
        print(f"{name}: {size} bytes, {accuracy(net, test):.1f} %")


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def samples(prototypes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, len(prototypes), (count,))
    return prototypes[labels] + 1.3 * torch.randn(count, prototypes.shape[1]), labels


def accuracy(net: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return 100 * float((net(test[0]).argmax(1) == test[1]).float().mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
