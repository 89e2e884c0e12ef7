"""The demo's network: handwritten digits, a small convolutional classifier, and plain rounding to compare with."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from waterfill.cli.exit_codes import UsageError

_GROUP = 64  # columns that share a scale under plain rounding
_EPOCHS = 20
_BATCH = 64


@dataclass(frozen=True)
class Digits:
    """Images [count, 1, 8, 8], values 0 to 1, and labels [count], for training and for testing."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load_digits() -> Digits:
    """The 1797 digits that scikit-learn carries, the last third for testing. Raises UsageError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise UsageError('the demo needs scikit-learn for its data; pip install "waterfill[demo]"') from error
    data = load()
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    cut = 2 * len(labels) // 3
    return Digits((images[:cut], labels[:cut]), (images[cut:], labels[cut:]))


def network() -> nn.Sequential:
    """Four convolutions with batch norm and a linear layer: about 47 thousand weights."""
    widths = (1, 16, 32, 48, 64)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i == 1 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def trained(digits: Digits, seed: int = 0) -> nn.Sequential:
    """The network after a few epochs: the same weights every time on one machine."""
    images, labels = digits.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        steps = _EPOCHS * math.ceil(len(labels) / _BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(labels), dtype=torch.int64, device="cpu").split(_BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [count, classes] for images [count, 1, 8, 8]."""
    with torch.no_grad():
        return model(images)


def plainly_rounded(state: dict[str, Tensor], bits: int) -> tuple[dict[str, Tensor], int]:
    """Every weight matrix rounded to nearest, and the bytes that takes: packed codes of so many bits, a float16 scale
    for each 64 columns of a row, from the largest magnitude among them; what is no matrix in float16 (float32 at 32
    bits), integers as they are."""
    rounded, size = {}, 0.0
    for name, value in state.items():
        if not value.is_floating_point():
            rounded[name] = value
            size += value.numel() * value.element_size()
        elif value.ndim < 2:
            rounded[name] = value.half().float()
            size += 2 * value.numel()
        else:
            rounded[name], used = _rounded_matrix(value, bits)
            size += used
    return rounded, math.ceil(size)


def _rounded_matrix(value: Tensor, bits: int) -> tuple[Tensor, int]:
    flat = value.reshape(len(value), -1)
    groups = math.ceil(flat.shape[1] / _GROUP)
    blocks = nn.functional.pad(flat, (0, groups * _GROUP - flat.shape[1])).view(len(flat), groups, _GROUP)
    highest = 2 ** (bits - 1) - 1
    scale = (blocks.abs().amax(2, keepdim=True) / highest).half().float()
    codes = (blocks / scale.clamp_min(torch.finfo(torch.float16).tiny)).round().clamp(-highest, highest)
    restored = (codes * scale).view(len(flat), -1)[:, : flat.shape[1]].reshape(value.shape)
    return restored, math.ceil(bits * value.numel() / 8) + 2 * groups * len(flat)
