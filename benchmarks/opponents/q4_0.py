"""SmolLM2-135M as Q4_0 of llama.cpp, rounded by its own rule and as an export: bytes and perplexity.

Both files have the same blocks, so llama.cpp takes as long for either. The folder is that of `WATERFILL_SMOLLM2`;
perplexity is that of the restored weights in PyTorch, on windows of WikiText-2.
"""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import waterfill.hf
from waterfill.export import export

WINDOWS = (24, 256)


def language_model(quick: bool) -> list[Any] | None:
    """A row of the table, or None where something is missing."""
    folder = Path(os.environ.get("WATERFILL_SMOLLM2", ""))
    text = Path(os.environ["WATERFILL_DATA"]) / "wikitext2_test.txt"
    if not (folder / "config.json").is_file() or not all(map(importlib.util.find_spec, ("transformers", "gguf"))):
        print("skipped: SmolLM2-135M: needs its folder (WATERFILL_SMOLLM2), transformers and gguf")
        return None
    import gguf
    from transformers import AutoModelForCausalLM

    windows = waterfill.hf.Windows(2 if quick else WINDOWS[0], WINDOWS[1])

    def perplexity(model: nn.Module) -> float:
        return waterfill.hf.evaluate(model.eval(), text, folder, windows).perplexity

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = perplexity(model)
    with tempfile.TemporaryDirectory() as place:
        small = Path(place) / "small"
        waterfill.hf.compress_folder(folder, small, "Quantize(bits=4, group=32)")
        made = export(small, Path(place) / "ours.gguf", "gguf")
        ours = perplexity(waterfill.hf.load(small, dtype=torch.float32))
        size, theirs_size = made.size, made.size
        theirs_size += sum(_bytes(model, row.name) - row.bytes for row in made.rows if row.form == "Q4_0")
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.copy_(torch.from_numpy(_rounded(gguf, value.numpy())))
    named = ["SmolLM2-135M", "gguf", "llama.cpp Q4_0", "perplexity"]
    return [*named, whole, perplexity(model), ours, theirs_size, size, None, None, None]


def _rounded(gguf: Any, values: np.ndarray) -> np.ndarray:
    kind = gguf.GGMLQuantizationType.Q4_0
    restored: np.ndarray = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    return restored


def _bytes(model: nn.Module, name: str) -> int:
    return model.get_parameter(name).numel() // 32 * 18
