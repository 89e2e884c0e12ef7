"""Fewer channels: half of the multiplications go, a little training without labels brings the loss back, and the file
goes into the same class.

python examples/channels.py [EPOCHS]
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import waterfill
from waterfill import learn, runtime


class Net(nn.Module):
    """A small residual network for images [batch, 1, 12, 12]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.inner(x)).amax((2, 3)))


def main(epochs: str = "5", images: int = 2048) -> None:
    torch.manual_seed(0)
    shapes = torch.randn(10, 1, 12, 12)
    (x, y), test = samples(shapes, images), samples(shapes, images)
    model = trained(Net(), x, y)

    pruned = waterfill.prune_channels(model, x[:256].split(64), macs=0.4)
    print(pruned.text())
    rows = {"whole": accuracy(model, test), "pruned": accuracy(pruned.model, test)}
    how = learn.Distillation(epochs=float(epochs), rate=2e-3)
    student = learn.distill(pruned.model, model, x.split(64), how=how)
    rows["pruned, trained without labels"] = accuracy(student, test)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.wf"
        size = waterfill.compress(student, bits=6).save(path)
        net = waterfill.load(path).install(Net()).eval()
    rows[f"and compressed, {size} bytes"] = accuracy(net, test)
    for name, found in rows.items():
        print(f"{name}: {found:.1f} %")
    for row in runtime.speed({"whole": model, "pruned": net}, [x[:64]], sizes=(1, 64)):
        print(f"{row.name}, {row.inputs} at once: {row.milliseconds:.2f} ms, {row.speedup:.2f} times as fast")


def trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(3):
        for images, labels in zip(x.split(64), y.split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def samples(shapes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, len(shapes), (count,))
    return shapes[labels] + 1.2 * torch.randn(count, *shapes.shape[1:]), labels


@torch.no_grad()
def accuracy(net: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    return 100 * float((net(test[0]).argmax(1) == test[1]).float().mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
