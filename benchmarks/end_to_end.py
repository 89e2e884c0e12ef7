"""A language model that runs compressed: tokens a second, memory and text, beside float32 and bfloat16.

SmolLM2-135M, whose folder `WATERFILL_SMOLLM2` names, is compressed without inputs to 4 and 3 bits of the whole file and
generates greedily, one sequence, by transformers, which must be installed. "tokens as restored" is whether the packed
network says, token by token, what the same file says when its weights are dense.

    python benchmarks/end_to_end.py [--threads 1,2] [--tokens 48]
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lib.common import Table, claim, claims_table, finish
from torch import Tensor, nn

import waterfill
from waterfill.runtime.speed import memory_of

BITS = (4.0, 3.0)
RUNS = 3
PROMPT = "The history of the printing press begins"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--tokens", type=int, default=48, help="to generate")
    options = parser.parse_args()
    folder = Path(os.environ.get("WATERFILL_SMOLLM2", ""))
    if not (folder / "config.json").is_file():
        print("skipped: needs the folder of SmolLM2-135M: set WATERFILL_SMOLLM2")
        sys.exit(0)
    threads = [int(text) for text in options.threads.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, model, restored, seconds in variants(folder, Path(place), options.tokens):
            for count in threads:
                torch.set_num_threads(count)
                rows.append([name, count, *measured(model, prompt(folder), options.tokens, restored), seconds])
                print(*rows[-1], flush=True)
            del model
            gc.collect()
    base = {row[1]: row[2] for row in rows if row[0] == "float32"}
    half = {row[1]: row[2] for row in rows if row[0] == "bfloat16"}
    rows = [[*row[:3], row[2] / base[row[1]], row[2] / half[row[1]], *row[3:]] for row in rows]
    columns = {"weights": "", "threads": "d", "tokens/s": ".1f", "times float32": ".2f", "times bfloat16": ".2f"}
    columns |= {"weights, MB": ".0f", "tokens as restored": "", "seconds to load": ".1f"}
    tables = {"generation": Table("SmolLM2-135M generates, one sequence", columns, rows)}
    tables["claims"] = claims_table(claims(rows))
    partial = any(getattr(options, key) != parser.get_default(key) for key in vars(options))
    finish("end_to_end", tables, vars(options), partial=partial, shown=tables)


def variants(folder: Path, place: Path, count: int) -> Any:
    """Name, network, the tokens to be expected if any, and the seconds that it took to load it."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        began = time.perf_counter()
        model = network(folder, dtype)
        yield name, model, None, time.perf_counter() - began
    for bits in BITS:
        file = place / f"{bits:g}.wf"
        waterfill.compress_file(folder / "model.safetensors", file, bits=bits)
        restored = generated(waterfill.load(file).install(network(folder, torch.float32)), prompt(folder), count)
        for size in (16, 8):
            empty = network(folder, torch.float32)
            began = time.perf_counter()
            model = waterfill.pack(file, empty, input_bits=size)
            yield f"{bits:g} bits packed, {size}-bit inputs", model, restored, time.perf_counter() - began


def network(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def prompt(folder: Path) -> Tensor:
    """Tokens [1, time]."""
    from transformers import AutoTokenizer

    tokens: Tensor = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    return tokens


def generated(model: nn.Module, inputs: Tensor, count: int) -> list[int]:
    """The tokens of a greedy generation."""
    with torch.inference_mode():
        made = model.generate(inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return made[0, inputs.shape[1] :].tolist()


def measured(model: nn.Module, inputs: Tensor, count: int, restored: list[int] | None) -> list[Any]:
    """Tokens a second, megabytes of weights, and whether the tokens are those to be expected."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        tokens = generated(model, inputs, count)
        times.append(time.perf_counter() - began)
    same = None if restored is None else tokens == restored[: len(tokens)]
    return [count / statistics.median(times), memory_of(model) / 1e6, same]


def claims(rows: list[list[Any]]) -> list[list[Any]]:
    """The bars with one thread: speed over float32 and bfloat16, memory, text."""
    at = {row[0]: row for row in rows if row[1] == min(row[1] for row in rows)}
    made = []
    for bits in BITS:
        exact, quick = (at.get(f"{bits:g} bits packed, {size}-bit inputs") for size in (16, 8))
        if exact and quick:
            made.append(claim(f"{bits:g} bits, 8-bit inputs: times as fast as float32", quick[3], 4.0, ".2f"))
            made.append(claim(f"{bits:g} bits, 8-bit inputs: times as fast as bfloat16", quick[4], 2.0, ".2f"))
            share = exact[5] / at["float32"][5]
            made.append(claim(f"{bits:g} bits: weights in memory, of float32", share, 0.2, ".3f", at_most=True))
            made.append(claim(f"{bits:g} bits, 16-bit inputs: tokens are those of dense weights", exact[6], 1, "d"))
    return made


if __name__ == "__main__":
    main()
