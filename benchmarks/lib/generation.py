"""Greedy generation of one sequence, by transformers and by llama.cpp."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROMPT = "The history of the printing press begins"


@contextmanager
def working(kept: Path | None) -> Iterator[Path]:
    """A folder for files that are made on the way: one that stays, or one that goes with the block."""
    with tempfile.TemporaryDirectory() as place:
        folder = kept or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def network(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def decoder(layers: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A decoder like Llama of random weights and width 1536: 28 million weights a layer, and 49 million for tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 32_000, "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 24, "num_key_value_heads": 24, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(dtype).eval()


def prompt(folder: Path) -> Tensor:
    """Tokens [1, time]."""
    from transformers import AutoTokenizer

    tokens: Tensor = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    return tokens


def generated(model: Any, inputs: Tensor, count: int) -> list[int]:
    """The tokens of a greedy generation by transformers."""
    with torch.inference_mode():
        made = model.generate(inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    found: list[int] = made[0, inputs.shape[1] :].tolist()
    return found


@torch.inference_mode()
def apart(model: Any, dense: Any, inputs: Tensor) -> float:
    """By how much the logits of a prompt differ at most."""
    return float((model(inputs).logits - dense(inputs).logits).abs().max())


def other_way(model: Any, dense: Any, inputs: Tensor, tokens: list[list[int]]) -> list[float] | None:
    """Where two generations part: which token it is, by how much the dense network prefers its own to the other one
    there, and how far apart the logits of these two networks are at most. None where they do not. tokens: of the model
    and of the dense one."""
    at = next((i for i, (own, other) in enumerate(zip(*tokens, strict=True)) if own != other), None)
    if at is None:
        return None
    given = torch.cat([inputs, torch.tensor([tokens[1][:at]], dtype=inputs.dtype)], 1)
    with torch.inference_mode():
        ours, theirs = (each(given).logits[0, -1].float() for each in (model, dense))
    gap = theirs[tokens[1][at]] - theirs[tokens[0][at]]
    return [at + 1, float(gap), float((ours - theirs).abs().max())]


class LlamaCpp:
    """llama.cpp on one thread, from a file of GGUF."""

    def __init__(self, file: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 256, 1, 0, False
        self.server = xllamacpp.Server(params)

    def __call__(self, count: int) -> None:
        given = {"prompt": PROMPT, "n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        self.server.handle_completions(given)


def llama_cpp(folder: Path, place: Path) -> "tuple[LlamaCpp, int] | None":
    """A model in llama.cpp's Q4_0, and the bytes of its file; None where the packages are missing."""
    try:
        import gguf  # noqa: F401  # what the export needs
        import xllamacpp  # noqa: F401
    except ImportError as error:
        print(f"without llama.cpp: {error}", file=sys.stderr)
        return None
    from waterfill.export import export
    from waterfill.hf import compress_folder

    made = place / "q4_0"
    if not (made.with_suffix(".gguf")).is_file():
        compress_folder(folder, made, spec="Quantize(bits=4, group=32)")
        export(made, made.with_suffix(".gguf"), to="gguf")
    file = made.with_suffix(".gguf")
    return LlamaCpp(file), file.stat().st_size
