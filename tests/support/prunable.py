"""Small networks whose channels depend on each other in every way that real ones know."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """Two convolutions with norms, a bias-free one, a linear layer on a flattened map: images [batch, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.act = nn.PReLU(12)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        return self.head(F.max_pool2d(self.act(self.conv2(x)), 2).flatten(1))


class Block(nn.Module):
    """A residual block whose shortcut drops pixels and pads channels, as in the networks of CIFAR-10."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra // 2
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half)))


class Residual(nn.Module):
    """Two residual blocks behind a convolution: images [batch, 3, 8, 8] to 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(Block(6, 6, 1), Block(6, 10, 2))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Fire(nn.Module):
    """Squeezed channels, expanded by two convolutions side by side, one after the other: as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 6, 1)
        self.expand1 = nn.Conv2d(6, 8, 1)
        self.expand3 = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        x = torch.cat([torch.relu(self.expand1(x)), torch.relu(self.expand3(x))], 1)
        return self.head(x).mean((2, 3))


class Separable(nn.Module):
    """A depthwise and a grouped convolution, a group norm, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.groups = nn.GroupNorm(6, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.depthwise(F.relu6(self.first(x)))))
        x = torch.relu(self.groups(self.grouped(torch.relu(self.point(x)))))
        return self.head(torch.relu(self.up(x)))


class Attention(nn.Module):
    """Attention with four heads; their number is what the tensors have ("asked"), an attribute ("held"), or stands in
    the code ("written")."""

    def __init__(self, heads: str) -> None:
        super().__init__()
        self.heads, self.size, self.known = 4, 4, heads
        self.query, self.key, self.value = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.out = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        heads = {"asked": -1, "held": self.heads, "written": 4}[self.known]
        q, k, v = (
            layer(x).view(batch, time, heads, self.size).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """A causal language model in small, its output matrix tied to the embedding: tokens [batch, time] to logits."""

    def __init__(self, heads: str = "asked") -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.norm1, self.attention = nn.LayerNorm(16), Attention(heads)
        self.norm2, self.gate, self.up = nn.LayerNorm(16), nn.Linear(16, 24, bias=False), nn.Linear(16, 24)
        self.down = nn.Linear(24, 16, bias=False)
        self.norm3, self.head = nn.LayerNorm(16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return self.head(self.norm3(x + self.down(F.silu(self.gate(y)) * self.up(y))))


class Recurrent(nn.Module):
    """Tokens through a recurrent layer to logits, and its state."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.cell = kind(8, 12, layers, batch_first=True)
        self.head = nn.Linear(12, 20)

    def forward(self, tokens: Tensor) -> tuple[Tensor, object]:
        hidden, state = self.cell(self.embedding(tokens))
        return self.head(hidden), state


class TiedEmbedding(nn.Module):
    """An embedding whose matrix is the output's too, with nothing but elementwise functions between."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 10)
        self.head = nn.Linear(10, 20)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tokens(tokens)))


class Perceptron(nn.Module):
    """Two hidden layers with a gate fused into one matrix: [batch, 12] to 4 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.gated = nn.Linear(16, 14)
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gated(torch.tanh(self.first(x))).chunk(2, 1)
        return self.head(self.norm(a * torch.sigmoid(b)))


def pictures(count: int = 48) -> Tensor:
    """Images [count, 3, 8, 8]."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.3


def texts(count: int = 24) -> Tensor:
    """Tokens [count, 6] below 20."""
    return torch.randint(0, 20, (count, 6), generator=torch.Generator().manual_seed(1))


class Deep(nn.Module):
    """Three residual blocks alike behind a convolution, and one that changes the shape: images [batch, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.stage = nn.Sequential(*(Block(8, 8, 1) for _ in range(3)))
        self.last = Block(8, 12, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(torch.relu(self.norm(self.stem(x))))
        return self.head(self.last(x).mean((2, 3)))
