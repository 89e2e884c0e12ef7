"""What compressing a language model with inputs takes and gives, beside GPTQ and rounding in the same bytes.

SmolLM2-135M, whose folder `WATERFILL_SMOLLM2` names, is calibrated with the first sequences of WikiText-2's validation
text and measured by its perplexity and its divergence on the first 20 windows of 512 tokens of the test text, each read
by itself. Every method runs in a process of its own, on one thread: its processor seconds and its peak of memory, the
network and the libraries included, are those of the whole process until the weights are made. There are three tables:
`methods`, all of them at one rate from 32 sequences of 256 tokens; `rates`, some at several from 32 of 512; and `more`,
from 64 of 512.
`--blocks 4` cuts the network to its first blocks, for a quick look. Rows are written as they come; `--resume` goes on.

    python benchmarks/language_model.py [--resume] [--table rates] [--bits 3] [--blocks 30] [--methods waterfill,...]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lib import language
from lib.common import Table, claim, claims_table, data_folder, finish, measured_before
from opponents import gptq
from torch import Tensor, nn

import waterfill
from waterfill.network.running.forward import hooked
from waterfill.network.tensors import tensors_of

TEXT = "wikitext2_valid.txt"
SEQUENCES = {"methods": (32, 256), "rates": (32, 512), "more": (64, 512)}  # how many, of how many tokens, by table
CHARACTERS = 200_000  # of the text; more than the sequences take
FLOATS, OURS, PLAIN, GPTQ, ROUNDING = "float32", "waterfill", "waterfill without inputs", "GPTQ g128", "RTN g128"
IN_TURN = "waterfill by blocks"
FINER = {"RTN g64": 64, "RTN g32": 32}
"""Rounding with more scales."""
METHODS = (FLOATS, OURS, IN_TURN, PLAIN, GPTQ, ROUNDING)
BLOCKS = 30
PERPLEXITIES = {4.0: 30.0, 3.0: 32.0, 2.5: 37.0, 2.0: 50.0}  # at most, by bits, block by block
COLUMNS = {"method": "", "blocks": "d", "bits": ".3g", "bytes": ",d", "perplexity": ".2f", "divergence": ".4f"}
COLUMNS |= {"CPU seconds": ".0f", "peak, GB": ".2f", "agreement, %": ".1f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", choices=SEQUENCES, default="methods")
    parser.add_argument("--bits", default="3", help="per weight, of the whole file; several after commas")
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--resume", action="store_true", help="keep what the results hold")
    parser.add_argument("--one", help="a single method, measured in this process: a row as JSON")
    options = parser.parse_args()
    if reason := language.missing():
        print(f"skipped: {reason}")
        sys.exit(0)
    rates = list(map(float, options.bits.split(",")))
    if options.one:
        print(json.dumps(measured(options.one, options.blocks, rates[0], SEQUENCES[options.table])))
        return
    rows = {table: measured_before("language_model", table) if options.resume else [] for table in SEQUENCES}
    for bits in rates:
        for method in options.methods.split(","):
            if not any(row[:3] == [method, options.blocks, bits] for row in rows[options.table]):
                rows[options.table].append(apart(method, bits, options))
                write(rows, partial=True)
                print(*rows[options.table][-1], flush=True)
    write(rows, partial=not whole(rows))


def apart(method: str, bits: float, options: argparse.Namespace) -> list[Any]:
    """A row, measured in a process of its own with one thread."""
    command = [sys.executable, __file__, "--table", options.table, "--one", method]
    command += ["--blocks", str(options.blocks), "--bits", str(bits)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    row: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measured(method: str, blocks: int, bits: float, shape: tuple[int, int]) -> list[Any]:
    """A row of a table. shape: sequences, and tokens of each."""
    folder = data_folder()
    model = network(blocks)
    sequences = tokens(folder / TEXT, shape[0] * shape[1]).reshape(shape)
    began = time.process_time()
    size, state = MAKE[method](model, list(sequences.split(1)), bits)
    seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    windows = tokens(folder / language.TEXT, language.WINDOW * language.WINDOWS).split(language.WINDOW)
    original = {name: tensor.clone() for name, tensor in tensors_of(model)[0].items()}
    evaluate = language.by_windows(lambda window: model(window[None]).logits[0, :-1], model, original, windows)
    found = evaluate(state)
    return [method, blocks, bits, size, found.quality, found.divergence, seconds, peak, 100 * (found.agreement or 0.0)]


def network(blocks: int) -> nn.Module:
    """The language model, float32, with its first blocks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(os.environ[language.FOLDER], dtype=torch.float32).eval()
    model.model.layers = model.model.layers[:blocks]
    model.config.num_hidden_layers = len(model.model.layers)
    return model


def tokens(file: Path, count: int) -> Tensor:
    """The first tokens of a text."""
    from transformers import AutoTokenizer

    text = file.read_text("utf-8")[:CHARACTERS]
    found: list[int] = AutoTokenizer.from_pretrained(os.environ[language.FOLDER])(text)["input_ids"]
    return torch.tensor(found[:count], dtype=torch.int64)


def forward(model: nn.Module, batch: Tensor) -> Tensor:
    logits: Tensor = model(batch, use_cache=False).logits
    return logits


Made = tuple[int, dict[str, Tensor]]


def ours(model: nn.Module, batches: list[Tensor], bits: float) -> Made:
    made = waterfill.compress(model, batches, bits=bits, forward=forward, options=waterfill.Options(blocks="none"))
    return made.size, made.state_dict()


def in_turn(model: nn.Module, batches: list[Tensor], bits: float) -> Made:
    blocks = waterfill.Options(blocks="model.layers")
    made = waterfill.compress(model, batches, bits=bits, forward=forward, options=blocks)
    return made.size, made.state_dict()


def plain(model: nn.Module, batches: list[Tensor], bits: float) -> Made:
    made = waterfill.compress(model, bits=bits)
    return made.size, made.state_dict()


def as_it_is(model: nn.Module, batches: list[Tensor], bits: float) -> Made:
    state = {name: tensor.clone() for name, tensor in tensors_of(model)[0].items()}
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values()), state


def by_gptq(model: nn.Module, batches: list[Tensor], bits: float) -> Made:
    return within(model, grams(model, batches), bits)


def by_rounding(model: nn.Module, batches: list[Tensor], bits: float, group: int = gptq.GROUP) -> Made:
    return within(model, {}, bits, group)


def within(model: nn.Module, importance: dict[str, waterfill.Importance], bits: float, group: int = gptq.GROUP) -> Made:
    """Bytes, at most those of a file of so many bits per weight, and the weights."""
    state = tensors_of(model)[0]
    budget = int(sum(tensor.numel() for tensor in state.values()) * bits / 8)
    with patch.object(gptq, "WIDTHS", tuple(range(max(1, int(bits) - 1), int(bits) + 1))):
        return gptq.Opponent(state, importance, group=group).within(budget)


def grams(model: nn.Module, batches: list[Tensor]) -> dict[str, waterfill.Importance]:
    """The second moments of the inputs of every linear layer."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sums = {name: torch.zeros(layer.in_features, layer.in_features) for name, layer in layers.items()}

    def add(name: str, _: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        sums[name] += x.T @ x

    with torch.no_grad(), hooked(layers, add):
        for batch in batches:
            forward(model, batch)
    return {f"{name}.weight": waterfill.Importance(gram=gram) for name, gram in sums.items()}


MAKE: dict[str, Callable[[nn.Module, list[Tensor], float], Made]]
MAKE = {FLOATS: as_it_is, OURS: ours, IN_TURN: in_turn, PLAIN: plain, GPTQ: by_gptq, ROUNDING: by_rounding}
MAKE |= {name: partial(by_rounding, group=group) for name, group in FINER.items()}


def whole(rows: dict[str, list[list[Any]]]) -> bool:
    """Whether every method but that of the whole network at once, which takes half an hour, has its row for all blocks
    at 3 bits, and the rates theirs block by block."""
    found = {table: {tuple(row[:3]) for row in some} for table, some in rows.items()}
    wanted = {(method, BLOCKS, 3.0) for method in METHODS if method != OURS}
    return wanted <= found["methods"] and {(IN_TURN, BLOCKS, bits) for bits in PERPLEXITIES} <= found["rates"]


def write(rows: dict[str, list[list[Any]]], *, partial: bool) -> None:
    tables = {
        name: Table("SmolLM2-135M, {} sequences of {} tokens".format(*SEQUENCES[name]), COLUMNS, some)
        for name, some in rows.items()
    }
    tables["claims"] = claims_table(claims(rows))
    finish("language_model", tables, {"sequences": repr(SEQUENCES)}, partial=partial, shown=())


def claims(rows: dict[str, list[list[Any]]]) -> list[list[Any]]:
    """The bars for the whole network."""
    at = {row[0]: row for row in rows["methods"] if row[1] == BLOCKS and row[2] == 3}
    made = []
    if OURS in at:
        text = "SmolLM2-135M with inputs, 3 bits: minutes of one core"
        made.append(claim(text, at[OURS][6] / 60, 9, ".1f", at_most=True))
        made.append(claim("SmolLM2-135M with inputs, 3 bits: peak of memory, GB", at[OURS][7], 4, ".2f", at_most=True))
    for row in rows["more"]:
        if row[:2] == [IN_TURN, BLOCKS] and row[2] in PERPLEXITIES:
            text = f"SmolLM2-135M block by block, {row[2]:g} bits, twice the sequences: perplexity"
            made.append(claim(text, row[4], PERPLEXITIES[row[2]], ".2f", at_most=True))
    for row in rows["rates"] or rows["methods"]:
        if row[:2] != [IN_TURN, BLOCKS]:
            continue
        text = f"SmolLM2-135M block by block, {row[2]:g} bits:"
        if row[2] in PERPLEXITIES:
            made.append(claim(f"{text} perplexity", row[4], PERPLEXITIES[row[2]], ".2f", at_most=True))
        made.append(claim(f"{text} CPU minutes", row[6] / 60, 16, ".1f", at_most=True))
        made.append(claim(f"{text} peak, GB", row[7], 3, ".2f", at_most=True))
    for method in (OURS, IN_TURN):
        if method in at and GPTQ in at:
            text = f"SmolLM2-135M, 3 bits, {method}: divergence, of GPTQ's in the same bytes"
            made.append(claim(text, at[method][5] / at[GPTQ][5], 0.5, ".3f", at_most=True))
    return made


if __name__ == "__main__":
    main()
