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


def measured_over_promised(model, batches, found, name, forward=None):
    """Half the squared change of the outputs for each row, over D, for random errors in one weight."""
    weight, measured, promised = model.state_dict()[name], 0.0, 0.0
    run = forward or (lambda m, b: m(b))
    generator = torch.Generator().manual_seed(3)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            before = run(model, batch).double()
            rows = before.numel() // before.shape[-1] * len(batches)
            for _ in range(12):
                error = 1e-3 * (float(weight.std()) or 1.0) * torch.randn(weight.shape, generator=generator)
                weight.add_(error)
                measured += 0.5 * float((run(model, batch).double() - before).square().sum()) / rows
                weight.sub_(error)
                matrices = error if error.ndim == 3 and "expert" in name else error[None]
                shape = (1, -1) if weight.ndim == 1 else (weight.shape[-2 if "expert" in name else 0], -1)
                promised += sum(found[name].distortion(e.reshape(shape)) for e in matrices) / len(batches)
    return measured / promised / found.unit
