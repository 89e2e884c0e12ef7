"""Small networks that run: images, tokens, and every kind of norm; and noise on their weights, as compression makes."""

import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Normed(nn.Module):
    """Convolutions with and without bias, each kind of norm, a residual: images [batch, 3, 8, 8] to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(12, eps=1e-3)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.bn3 = nn.BatchNorm2d(8, affine=False)
        self.group = nn.GroupNorm(2, 8)
        self.hidden = nn.Linear(8, 24, bias=False)
        self.bn4 = nn.BatchNorm1d(24, affine=False)
        self.layer = nn.LayerNorm(24)
        self.root = nn.RMSNorm(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x))) + x
        x = torch.relu(self.group(self.bn3(self.up(x))))
        x = self.bn4(self.hidden(x.mean((2, 3))))
        return self.head(torch.relu(self.root(self.layer(x))))


class Tokens(nn.Module):
    """A causal language model in small: tokens [batch, time] to logits [batch, time, 20], and a state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden, (state, _) = self.lstm(self.embedding(tokens))
        return self.head(hidden), state


def lively(build: Callable[[], nn.Module], inputs: Tensor, seed: int = 3) -> nn.Module:
    """A network whose batch norms have the statistics of these inputs, and random affine terms."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if "Norm" in type(module).__name__ and getattr(module, "bias", None) is not None:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias, std=0.5)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = None  # averages over all that it sees
        with torch.no_grad():
            model(inputs)
    return model.eval()


def disturbed(model: nn.Module, size: float, bias: float = 0.0) -> nn.Module:
    """A copy whose matrices have noise of this size relative to theirs, and a shift common to all entries."""
    noisy, random = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in noisy.parameters():
            if value.ndim > 1:
                spread = value.std()
                value.add_(spread * (size * torch.randn(value.shape, generator=random) + bias))
    return noisy


def images(count: int, seed: int = 0) -> Tensor:
    """Inputs [count, 3, 8, 8] of positive mean."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + 0.5


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def data_module(folder: Path, name: str) -> ModuleType:
    """A module that lies in the folder of real networks and data."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def resnet20(data_file: Callable[[str], Path]) -> nn.Module:
    """The CIFAR-10 network of 269,722 parameters, 91.7 % correct."""
    path = data_file("cifar10_resnet20.safetensors")
    model = data_module(data_file("refmodels.py").parent, "refmodels").CifarResNet(20)
    model.load_state_dict(load_file(path))
    return model.eval()


def cifar(data_file: Callable[[str], Path], count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 3, 32, 32] of the test set, prepared as the networks want them, and their classes [count]."""
    path = data_file("cifar10_test.npz")
    pixels, labels = data_module(data_file("imgpack.py").parent, "imgpack").load(path)
    chosen = slice(start, start + count)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).float()
    return (x / 255 - mean) / deviation, torch.from_numpy(labels[chosen].astype(np.int64))
