"""Training data of the reference networks, as loaders with labels: what a network is trained with in compressed form.

CIFAR-10: 50,000 images, shifted by up to 4 pixels and mirrored. MNIST: 60,000 digits. Stories and text: what the
benchmarks do not measure on, text in windows that begin elsewhere in each pass.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lib.calibration_data import WINDOW, calibration_batches, characters
from lib.common import data_module
from lib.networks import imagenet_scale, mnist_scale
from torch import Tensor

BATCH = 128
CPU = torch.device("cpu")
_PAD = 4
_STORIES = 4000  # at most


class Windows:
    """Batches of (windows of a text, the characters after each of theirs) that begin elsewhere in each pass."""

    def __init__(self, text: Tensor, length: int = WINDOW, size: int = 32) -> None:
        self._text, self._length, self._size = text, length, size
        self._count = (len(text) - length) // length

    def __len__(self) -> int:
        return self._count // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        begin = int(torch.randint(0, self._length, ()))
        windows = self._text[begin : begin + self._count * self._length].view(-1, self._length)
        order = torch.randperm(self._count)
        for number in range(len(self)):
            some = windows[order[number * self._size : (number + 1) * self._size]]
            yield some[:, :-1], some[:, 1:]


class Shuffled:
    """Batches of (inputs, labels) in an order of torch's random numbers, each changed by them, on the device of x."""

    def __init__(self, x: Tensor, y: Tensor, change: Callable[[Tensor], Tensor], size: int = BATCH) -> None:
        self._x, self._y, self._change, self._size = x, y, change, size

    def __len__(self) -> int:
        return len(self._x) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._x))
        for number in range(len(self)):
            some = order[number * self._size : (number + 1) * self._size].to(self._x.device)
            yield self._change(self._x[some].float()), self._y[some]


def training_batches(
    network: str, folder: Path, device: torch.device = CPU
) -> "Shuffled | Windows | list[tuple[Tensor, Tensor]]":
    """The batches of a network, images on a device; of text, labels are the next tokens."""
    if network.startswith("ResNet"):
        scale, files = imagenet_scale(folder), [f"cifar10_train_{i}.npz" for i in range(1, 6)]
        x, y = (value.to(device) for value in _images(folder, files))
        return Shuffled(x, y, lambda x: scale(moved(x)).contiguous(memory_format=torch.channels_last))
    if network == "LeNet-300-100":
        return Shuffled(*_images(folder, ["mnist_train.npz"]), mnist_scale(folder))
    if network == "LSTM 2x128":
        return Windows(characters(folder))
    return [(x[:, :-1], x[:, 1:]) for x in calibration_batches(network, folder, _STORIES)]


def _images(folder: Path, files: list[str]) -> tuple[Tensor, Tensor]:
    loaded = [data_module(folder, "imgpack").load(folder / file) for file in files]
    x = torch.from_numpy(np.concatenate([pixels for pixels, _ in loaded]))
    y = torch.from_numpy(np.concatenate([labels for _, labels in loaded]).astype(np.int64))
    return (x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x), y


def moved(x: Tensor, most: int = _PAD) -> Tensor:
    """Images [n, c, h, w] mirrored or not, and shifted by up to so many pixels each way; the same on every device."""
    count, channels, height, width = x.shape
    mirrored = torch.rand(count)[:, None, None, None] < 0.5
    rows = torch.arange(height) + torch.randint(0, 2 * most + 1, (count, 1))
    cols = torch.arange(width) + torch.randint(0, 2 * most + 1, (count, 1))
    mirrored, rows, cols = mirrored.to(x.device), rows.to(x.device), cols.to(x.device)
    padded = F.pad(torch.where(mirrored, x.flip(3), x), (most, most, most, most))
    image, channel = torch.arange(count, device=x.device), torch.arange(channels, device=x.device)
    return padded[image[:, None, None, None], channel[None, :, None, None], rows[:, None, :, None], cols[:, None, None]]
