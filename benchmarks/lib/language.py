"""A language model that transformers opens, as a reference network: SmolLM2-135M in a folder that an environment
variable names. Measured is its perplexity on the first windows of a text, and the divergence of its outputs."""

import importlib.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from lib.networks import Evaluator, Measured, Network, State
from torch import Tensor

NAME = "SmolLM2-135M"
RATES = (4.253, 3.253)
"""Bits per weight of the whole file: those of rounding in groups of 64 to 4 and to 3 bits, with its scales."""
FOLDER = "WATERFILL_SMOLLM2"
TEXT = "wikitext2_test.txt"
WINDOW, WINDOWS, FEW = 512, 20, 4
_CHARACTERS = 200_000  # of the text; more than the windows take


def language_models() -> dict[str, Network]:
    """The network by its name, or nothing where it cannot be had: `missing` says why."""
    if missing():
        return {}
    file = Path(os.environ[FOLDER]).resolve() / "model.safetensors"
    return {NAME: Network(NAME, str(file), "perplexity", -1, 0.05, prepare)}


def missing() -> str:
    """Why the network cannot be measured here; empty where it can."""
    lacking = [name for name in ("transformers", "tokenizers") if importlib.util.find_spec(name) is None]
    if lacking:
        return f"it needs the package {lacking[0]}"
    folder = os.environ.get(FOLDER)
    if not folder:
        return f"{FOLDER} names no folder that transformers opens"
    found = (Path(folder) / "model.safetensors").is_file()
    return "" if found else f"there is no model.safetensors in {folder}, which {FOLDER} names"


def folder() -> Path:
    """Where the network is; a benchmark that cannot have it says why, and ends."""
    if reason := missing():
        print(f"skipped: {reason}")
        sys.exit(0)
    return Path(os.environ[FOLDER])


def prepare(folder: Path, original: State, quick: bool) -> Evaluator:
    """Perplexity and divergence over windows of the text, each read by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = os.environ[FOLDER]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    text = (folder / TEXT).read_text("utf-8")[:_CHARACTERS]
    tokens = torch.tensor(AutoTokenizer.from_pretrained(source)(text)["input_ids"])
    windows = tokens[: WINDOW * (FEW if quick else WINDOWS)].split(WINDOW)
    return by_windows(lambda window: model(window[None]).logits[0, :-1], model, original, windows)


def by_windows(
    logits: Callable[[Tensor], Tensor], model: torch.nn.Module, original: State, windows: tuple[Tensor, ...]
) -> Evaluator:
    """Measures a state one window [tokens] at a time; what the original says of each is kept."""

    def install(state: State) -> None:
        left = model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
        if left.unexpected_keys:
            raise ValueError(f"the network has no tensor {left.unexpected_keys[0]!r}")

    @torch.inference_mode()
    def measure(state: State) -> Measured:
        install(state)
        divergence, surprise, agreeing, count = 0.0, 0.0, 0, 0
        for window, reference in zip(windows, references, strict=True):
            found = logits(window).log_softmax(-1)
            divergence += F.kl_div(found, reference, reduction="sum", log_target=True).item()
            agreeing += int((found.argmax(-1) == reference.argmax(-1)).sum())
            surprise += F.nll_loss(found, window[1:], reduction="sum").item()
            count += len(found)
        return Measured(math.exp(surprise / count), max(divergence / count, 0.0), agreement=agreeing / count)

    with torch.inference_mode():
        install(original)
        references = [logits(window).log_softmax(-1) for window in windows]
    return measure
