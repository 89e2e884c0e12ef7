"""Compress a model of your own class, save it, and put the file back into a new instance of the class.

python examples/your_model.py
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import waterfill


class Net(nn.Module):
    """Any class will do; nothing in it knows of compression."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.rnn = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.features(images).mean(3).transpose(1, 2)
        states, _ = self.rnn(rows)
        return self.head(states[:, -1])


def main(width: int = 64) -> None:
    torch.manual_seed(0)
    model = Net(width).eval()

    compressed = waterfill.compress(model, bits=4)  # or size=20_000, ratio=8, price=1e-4
    for row in compressed.table():
        print(f"{row['name']:30} {row['part']:28} {row['bits']:6.2f} bits/entry  {100 * row['error']:6.3f} % off")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.wf"
        size = compressed.save(path)
        assert size == compressed.size == path.stat().st_size  # the only size that is ever reported
        restored = waterfill.load(path).install(Net(width)).eval()  # strict: every name and every shape

    images = torch.randn(8, 3, 16, 16)
    change = (restored(images) - model(images)).norm() / model(images).norm()
    print(f"{size} bytes, {compressed.bits:.2f} bits per weight; answers moved by {100 * change:.2f} %")


if __name__ == "__main__":
    main()
