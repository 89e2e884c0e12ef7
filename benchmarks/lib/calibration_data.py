"""Unlabelled inputs to calibrate the reference networks with, none of which the benchmarks measure them on.

ResNets: training images of CIFAR-10; LeNet: training images of MNIST; the Llama: stories after those that it is
measured on; the LSTM: the first nine tenths of its text. Of ImageNet there are 250 images only: every fourth is for
calibration, and networks are measured on the others. Images and windows of text are spread evenly over what there is.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lib.common import data_module
from lib.networks import State, imagenet_scale, mnist_scale
from torch import Tensor, nn

SPARED = 4
"""Of the ImageNet sample, one in so many images is for calibration."""
MEASURED_STORIES = 200
WINDOW = 256
APART = 7
"""Images from the first of one set of ResNet inputs to that of the next; within a set they are further apart."""
_BATCH = 32


def calibration_batches(network: str, folder: Path, count: int, first: int = 0) -> list[Tensor]:
    """About `count` inputs of a network, in batches, as its model takes them; none where no data belong to it.

    An input is an image, a story, or a window of 256 characters; there are no more of them than the data have. first:
    for ResNets, the first image of those taken evenly: another set for each.
    """
    if network.startswith("ResNet"):
        return _images(folder, "cifar10_train_1.npz", count, imagenet_scale(folder), slice(first, None))
    if network == "LeNet-300-100":
        return _images(folder, "mnist_train.npz", count, mnist_scale(folder))
    if network == "SqueezeNet 1.1":
        return _images(folder, "imagenet_sample_250.npz", count, imagenet_scale(folder), slice(None, None, SPARED))
    if network == "MobileNetV1 0.25":
        return _images(folder, "imagenet_sample_250.npz", count, lambda x: x / 127.5 - 1, slice(None, None, SPARED))
    if network == "Llama 260K":
        return _stories(folder, count)
    return _windows(folder, count) if network == "LSTM 2x128" else []


def model_of(network: str, folder: Path, state: State) -> nn.Module:
    """The network itself, with these tensors. Raises KeyError for matrices without a network."""
    models = data_module(folder, "refmodels")
    if network.startswith("ResNet-"):
        model = models.CifarResNet(int(network.removeprefix("ResNet-")))
    elif network == "LSTM 2x128":
        model = models.CharLSTM(*state["embedding.weight"].shape)
    else:
        names = {
            "LeNet-300-100": "LeNet300",
            "SqueezeNet 1.1": "SqueezeNet11",
            "MobileNetV1 0.25": "MobileNetV1",
            "Llama 260K": "TinyLlama",
        }
        model = getattr(models, names[network])()
    model.load_state_dict(state)
    return model.eval()


def _spread(length: int, count: int) -> np.ndarray:
    """Places of `count` of `length` items, or of all, evenly."""
    return np.arange(min(count, length)) * length // min(count, length)


def _images(
    folder: Path, file: str, count: int, scale: Callable[[Tensor], Tensor], some: slice = slice(None)
) -> list[Tensor]:
    pixels = data_module(folder, "imgpack").load(folder / file)[0][some]
    x = torch.from_numpy(pixels[_spread(len(pixels), count)])
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
    return [scale(piece.float()).contiguous() for piece in x.split(_BATCH)]


def _stories(folder: Path, count: int) -> list[Tensor]:
    """Each story is a batch of its own, since their lengths differ."""
    models = data_module(folder, "refmodels")
    tokenizer = models.ScoredBPE(folder / "tinystories_tok512.bin")
    texts = (folder / "tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>")
    rest = [text.strip() for text in texts if text.strip()][MEASURED_STORIES:]
    chosen = [rest[i] for i in _spread(len(rest), count)]
    context = models.TinyLlama().context
    return [torch.tensor([[tokenizer.BOS, *tokenizer.encode(text)][:context]]) for text in chosen]


def characters(folder: Path) -> Tensor:
    """The first nine tenths of the text of the LSTM, which it is not measured on."""
    vocabulary = json.loads((folder / "shakespeare_charlstm_vocab.json").read_text("utf-8"))
    text = (folder / "tinyshakespeare.txt").read_text("utf-8")
    return torch.tensor([vocabulary[c] for c in text[: int(0.9 * len(text))]])


def _windows(folder: Path, count: int) -> list[Tensor]:
    head = characters(folder)
    windows = head[: len(head) // WINDOW * WINDOW].view(-1, WINDOW)
    return list(windows[_spread(len(windows), count)].split(_BATCH))
