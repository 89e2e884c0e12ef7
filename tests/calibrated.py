"""A small convolutional network and images for it, to calibrate with."""

import torch
import torch.nn.functional as F
from torch import nn


def net() -> nn.Module:
    """Convolutions of three kinds and a head."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12, 5),
    )


MATRICES = ("0.weight", "2.weight", "5.weight", "8.weight")


def images(count: int = 24) -> torch.Tensor:
    """Smooth images, whose neighbors correlate."""
    noise = torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    return F.avg_pool2d(noise, 3, stride=1) * 3 + 0.5
