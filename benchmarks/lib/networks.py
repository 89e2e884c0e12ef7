"""The reference networks, and what is measured of each: its quality on real data, and how far its outputs moved."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lib.common import data_module
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]
FEW = 1000
"""Of so many samples each one counts when networks are compared."""


@dataclass(frozen=True)
class Measured:
    """quality in the network's own unit; divergence: mean KL of the outputs from the original's, nats, or None.

    right: of a few samples, one bit for each, packed: whether the network was right; empty where there are many.
    agreement: share of outputs whose largest entry is that of the original's, where it was counted.
    """

    quality: float
    divergence: float | None
    right: bytes = b""
    agreement: float | None = None


Evaluator = Callable[[State], Measured]


@dataclass(frozen=True)
class Network:
    """file: its checkpoint. better: +1 where more quality is better, else -1.

    resolution: differences of quality up to this are chance (ten images of 10,000, one of 250).
    prepare: (data folder, original state, quick) -> what measures a state of the same network.
    """

    name: str
    file: str
    metric: str
    better: int
    resolution: float
    prepare: Callable[[Path, State, bool], Evaluator]

    def state(self, folder: Path) -> State:
        """The original tensors."""
        return load_file(folder / self.file)


def by_outputs(
    model: nn.Module,
    logits: Callable[[nn.Module], Tensor],
    original: State,
    score: Callable[[Tensor], float],
    targets: Tensor | None = None,
) -> Evaluator:
    """Measures a state by the model's log probabilities [n, classes]: their score, and their divergence.

    targets: of a classifier.
    """

    @torch.inference_mode()
    def outputs(state: State) -> Tensor:
        model.load_state_dict(state, strict=True)
        return logits(model.eval()).log_softmax(1)

    reference = outputs(original)

    def measure(state: State) -> Measured:
        found = outputs(state)
        divergence = F.kl_div(found, reference, reduction="batchmean", log_target=True).item()
        few = targets is not None and len(targets) <= FEW
        right = np.packbits((found.argmax(1) == targets).numpy()).tobytes() if few else b""
        return Measured(score(found), max(divergence, 0.0), right)

    return measure


def accuracy(targets: Tensor) -> Callable[[Tensor], float]:
    """Percent of outputs [n, classes] whose largest entry is the target's."""
    return lambda outputs: 100 * (outputs.argmax(1) == targets).double().mean().item()


def code_length(targets: Tensor, size: int) -> Callable[[Tensor], float]:
    """Bits that the targets cost under log probabilities [n, classes], per unit of `size`."""
    return lambda outputs: F.nll_loss(outputs, targets, reduction="sum").item() / math.log(2) / size


def image_network(
    build: Callable[..., nn.Module],
    data: str,
    images: int,
    scale: Callable[..., Callable[[Tensor], Tensor]],
    *,
    spared: int = 0,
) -> Callable[[Path, State, bool], Evaluator]:
    """An image classifier: build(reference models); scale(folder) -> what prepares pixels 0 to 255.

    spared: every so many images, one is left out, for others to calibrate with; 0 for none.
    """

    def prepare(folder: Path, original: State, quick: bool) -> Evaluator:
        pixels, labels = data_module(folder, "imgpack").load(folder / data)
        if spared:
            shown = np.arange(len(pixels)) % spared != 0
            pixels, labels = pixels[shown], labels[shown]
        count = images if quick else len(pixels)
        transform = scale(folder)
        x = torch.from_numpy(pixels[:count])
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x

        def logits(model: nn.Module) -> Tensor:
            return torch.cat([model(transform(piece.float())) for piece in x.split(50)])

        targets = torch.from_numpy(labels[:count].astype(np.int64))
        model = build(data_module(folder, "refmodels")).to(
            memory_format=torch.channels_last
        )  # as the pixels are: faster
        return by_outputs(model, logits, original, accuracy(targets), targets)

    return prepare


def imagenet_scale(folder: Path) -> Callable[[Tensor], Tensor]:
    data_module(folder, "imgpack"), data_module(folder, "refmodels")  # which check imports by these names
    check = data_module(folder, "check")
    return lambda x: (x / 255 - check.IMAGENET_MEAN.to(x.device)) / check.IMAGENET_STD.to(x.device)


def mnist_scale(folder: Path) -> Callable[[Tensor], Tensor]:
    mean = torch.from_numpy(np.load(folder / "mnist_test.npz")["mean"])
    return lambda x: x / 255 - mean


def prepare_llama(folder: Path, original: State, quick: bool) -> Evaluator:
    """Bits per byte of stories, each on its own and cut to the context."""
    models = data_module(folder, "refmodels")
    tokenizer = models.ScoredBPE(folder / "tinystories_tok512.bin")
    model = models.TinyLlama()
    texts = (folder / "tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>")
    stories = [text.strip() for text in texts if text.strip()][: 20 if quick else 200]
    tokens = [[tokenizer.BOS, *tokenizer.encode(text)][: model.context + 1] for text in stories]
    pieces = [[tokenizer.pieces[i] for i in ids[1:]] for ids in tokens]
    size = sum(sum(1 if p.startswith(b"<0x") and len(p) == 6 else len(p) for p in story) - 1 for story in pieces)

    def logits(network: nn.Module) -> Tensor:
        return torch.cat([network(torch.tensor([ids[:-1]]))[0] for ids in tokens])

    targets = torch.tensor([i for ids in tokens for i in ids[1:]])
    return by_outputs(model, logits, original, code_length(targets, size))


def prepare_lstm(folder: Path, original: State, quick: bool) -> Evaluator:
    """Bits per character of the text's last tenth, in 16 streams along which the state is carried."""
    vocabulary = json.loads((folder / "shakespeare_charlstm_vocab.json").read_text("utf-8"))
    text = (folder / "tinyshakespeare.txt").read_text("utf-8")
    tail = text[int(0.9 * len(text)) :]
    tail = tail[:20000] if quick else tail
    length = len(tail) // 16
    streams = torch.tensor([vocabulary[c] for c in tail[: 16 * length]]).view(16, length)

    def logits(network: nn.Module) -> Tensor:
        state, found = None, []
        for piece in streams[:, :-1].split(256, dim=1):
            y, state = network(piece, state)
            found.append(y)
        return torch.cat(found, 1).flatten(0, 1)

    targets = streams[:, 1:].flatten()
    model = data_module(folder, "refmodels").CharLSTM(len(vocabulary), 128)
    return by_outputs(model, logits, original, code_length(targets, len(targets)))


def prepare_matrices(folder: Path, original: State, quick: bool) -> Evaluator:
    """Weights that no data belong to: the squared error of the matrices, in percent of their energy."""

    def measure(state: State) -> Measured:
        matrices = [name for name, tensor in original.items() if tensor.ndim >= 2]
        error = sum((state[n].double() - original[n].double()).square().sum().item() for n in matrices)
        return Measured(100 * error / sum(original[n].double().square().sum().item() for n in matrices), None)

    return measure


def _cifar(depth: int) -> Network:
    prepare = image_network(lambda models: models.CifarResNet(depth), "cifar10_test.npz", 1000, imagenet_scale)
    return Network(f"ResNet-{depth}", f"cifar10_resnet{depth}.safetensors", "accuracy, %", 1, 0.1, prepare)


def _imagenet(name: str, file: str, model: str, spared: int) -> Network:
    scale = imagenet_scale if model == "SqueezeNet11" else lambda _: lambda x: x / 127.5 - 1
    data = "imagenet_sample_250.npz"
    prepare = image_network(lambda models: getattr(models, model)(), data, 50, scale, spared=spared)
    return Network(name, file, "accuracy, %", 1, 0.4, prepare)


def networks(spared: int = 0) -> dict[str, Network]:
    """Every reference network by name, the longest to measure first.

    spared: of the ImageNet sample, every so many images one is not used to measure; 0 for all are used.
    """
    mnist = image_network(lambda models: models.LeNet300(), "mnist_test.npz", 2000, mnist_scale)
    found = [
        _cifar(56),
        _cifar(32),
        _cifar(20),
        _imagenet("SqueezeNet 1.1", "imagenet_squeezenet11.safetensors", "SqueezeNet11", spared),
        _imagenet("MobileNetV1 0.25", "imagenet_mobilenetv1_025.safetensors", "MobileNetV1", spared),
        Network("Llama 260K", "tinystories_llama260k.safetensors", "bits/byte", -1, 0.001, prepare_llama),
        Network("LSTM 2x128", "shakespeare_charlstm.safetensors", "bits/character", -1, 0.001, prepare_lstm),
        Network("LeNet-300-100", "mnist_lenet300.safetensors", "accuracy, %", 1, 0.1, mnist),
        Network("GPT-2 attention", "gpt2_small_attention_3.safetensors", "squared error, %", -1, 0.0, prepare_matrices),
    ]
    return {network.name: network for network in found}
