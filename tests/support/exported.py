"""Networks to export: one of each kind of layer that formats know, small enough for every format."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import waterfill
from waterfill.model.compressed import CompressedModel


class Reader(nn.Module):
    """A tied embedding, linear layers of three dimensions, a recurrent layer: tokens [batch, time] to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(48, 64)
        self.hidden = nn.Linear(64, 96)
        self.back = nn.Linear(96, 64, bias=False)
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.head = nn.Linear(64, 48, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.back(F.gelu(self.hidden(x)))
        return self.head(self.lstm(x)[0])


class Viewer(nn.Module):
    """Convolutions, a batch norm, a linear layer of two dimensions: images [batch, 3, 8, 8] to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, groups=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


def reader() -> tuple[nn.Module, Tensor]:
    """A network of tokens and some of them."""
    torch.manual_seed(0)
    return Reader().eval(), torch.randint(0, 48, (3, 7))


def viewer() -> tuple[nn.Module, Tensor]:
    """A network of images and some of them."""
    torch.manual_seed(0)
    model = Viewer()
    model.norm.running_mean.uniform_(-1, 1)
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval(), torch.randn(4, 3, 8, 8)


def small(model: nn.Module, spec: str) -> CompressedModel:
    """A network compressed by a recipe, without data."""
    fixed = waterfill.parse(spec).fixed_rate
    return waterfill.compress(model, spec=spec, **({} if fixed else {"bits": 4}))


def outputs(model: nn.Module, made: CompressedModel, x: Tensor) -> Tensor:
    """What the restored network gives in PyTorch, without gradients."""
    with torch.no_grad():
        return made.install(model)(x)


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, relative to that of the second."""
    return float((a - b).norm() / b.norm())
