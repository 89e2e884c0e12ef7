"""Language models that run compressed: tokens a second, memory and text, beside float32, bfloat16 and llama.cpp.

SmolLM2-135M in float32, whose folder `WATERFILL_SMOLLM2` names, is compressed without inputs to 4 and 3 bits of the
whole file and generates greedily, one sequence, by transformers, which must be installed. Networks take turns, and the
shortest run counts: of processor seconds with one thread, of the wall's with more. llama.cpp, where the packages gguf
and xllamacpp are, reads the same network as Q4_0, which `waterfill export` writes. "tokens as restored" is whether the
packed network says, token by token, what the same file says when its weights are dense.

    python benchmarks/end_to_end.py [--threads 1,2] [--tokens 48] [--work FOLDER]
"""

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lib import generation as g
from lib import language
from lib.common import Table, claim, claims_table, finish
from lib.turns import in_turns
from torch import nn

import waterfill
from waterfill.runtime.speed import memory_of

BITS, INPUT_BITS = (4.0, 3.0), (24, 16, 8)
ROUNDS = 9
WARM, LONG = 1, 25
"""Tokens of a short run, whose time is taken from that of a long one: what is left is one token after another."""
SECONDS = 300.0
Run = Callable[[int], object]
"""Generates so many tokens."""
SMALL = "SmolLM2-135M"
Q4, LLAMA = "Q4_0", "llama.cpp"
COLUMNS = {"network": "", "weights": "", "run by": "", "threads": "d", "tokens/s": ".1f", "times float32": ".2f"}
COLUMNS |= {"times bfloat16": ".2f", "weights, MB": ".0f", "tokens as restored": "", "seconds to load": ".1f"}
LOADING = {"network": "", "weights, M": ".1f", "seconds of a processor": ".2f", "M weights/s": ".0f"}
LOGITS = {"weights": "", "logits of the prompt differ by at most": ".2g"}
TIES = {"weights": "", "first other token": "d", "dense prefers its own by": ".3f", "logits differ by at most": ".3f"}
Rows = list[list[Any]]


@dataclass
class Bench:
    """What was found so far. whole: whether every number of threads and every way to run is measured."""

    folder: Path
    place: Path
    threads: list[int]
    tokens: int
    rows: Rows = field(default_factory=list)
    loading: Rows = field(default_factory=list)
    ties: Rows = field(default_factory=list)
    logits: Rows = field(default_factory=list)

    def tables(self) -> dict[str, Table]:
        tables = {"generation": Table("Generation of one sequence", COLUMNS, self.rows)}
        tables["loading"] = Table("From a file to packed layers, processor seconds", LOADING, self.loading)
        tables["logits"] = Table("Packed beside restored weights", LOGITS, self.logits)
        tables["ties"] = Table("Where packed and restored weights say another token", TIES, self.ties)
        return tables | {"claims": claims_table(claims(self.rows, self.loading))}

    def packed(self, network: str, file: Path, model: nn.Module, size: int) -> tuple[nn.Module, float]:
        """A network packed from a file, and the processor seconds that it took."""
        count = sum(value.numel() for value in model.parameters())
        began = time.process_time()
        made = waterfill.pack(file, model, input_bits=size)
        seconds = time.process_time() - began
        self.loading.append([f"{network}, {file.stem}, {size}-bit inputs", count / 1e6, seconds, count / 1e6 / seconds])
        print(*self.loading[-1], flush=True)
        return made, seconds

    def timed(self, network: str, run_by: str, runs: Mapping[str, Run], facts: Mapping[str, Any], threads: int) -> None:
        """Rows of several networks that generate in turns."""
        torch.set_num_threads(threads)
        counts = {"long": LONG, "short": WARM}
        actions = {f"{name}/{key}": partial(run, count) for name, run in runs.items() for key, count in counts.items()}
        times = in_turns(actions, ROUNDS, SECONDS)
        torch.set_num_threads(1)
        each = {name: (times[f"{name}/long"] - times[f"{name}/short"]) / (LONG - WARM) for name in runs}
        for name, seconds in each.items():
            ratios = [each[base] / seconds for base in ("float32", "bfloat16")]
            self.rows.append(
                [network, name, LLAMA if name == Q4 else run_by, threads, 1 / seconds, *ratios, *facts[name]]
            )
            print(*self.rows[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--tokens", type=int, default=48, help="to generate and compare")
    parser.add_argument("--work", type=Path, help="keeps the files that are made, for a later run")
    options = parser.parse_args()
    folder = language.folder()
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with g.working(options.work) as work:
        bench = Bench(folder, work, [int(text) for text in options.threads.split(",")], options.tokens)
        small(bench)
    tables = bench.tables()
    own = {key: value for key, value in vars(options).items() if key != "work"}
    some = any(own[key] != parser.get_default(key) for key in own)
    finish("end_to_end", tables, own, partial=some, shown=tables)


def small(bench: Bench) -> None:
    """SmolLM2-135M."""
    nets, facts = dense(lambda dtype: g.network(bench.folder, dtype))
    inputs = g.prompt(bench.folder)
    for bits in BITS:
        file = bench.place / f"{bits:g} bits.wf"
        if not file.is_file():
            waterfill.compress(g.network(bench.folder), bits=bits).save(file)
        restored = waterfill.load(file).install(g.network(bench.folder))
        wanted = g.generated(restored, inputs, bench.tokens)
        for size in INPUT_BITS:
            name = f"{bits:g} bits packed, {size}-bit inputs"
            nets[name], seconds = bench.packed(SMALL, file, g.network(bench.folder), size)
            found = g.generated(nets[name], inputs, bench.tokens)
            facts[name] = [memory_of(nets[name]) / 1e6, found == wanted, seconds]
            bench.logits.append([name, g.apart(nets[name], restored, inputs)])
            other = g.other_way(nets[name], restored, inputs, [found, wanted])
            bench.ties += [[name, *other]] if other else []
    del restored
    gc.collect()
    runs: dict[str, Run] = {name: partial(g.generated, net, inputs) for name, net in nets.items()}
    theirs = g.llama_cpp(bench.folder, bench.place)
    more: dict[str, Run] = {}
    if theirs:
        more[Q4], facts[Q4] = theirs[0], [theirs[1] / 1e6, None, None]
    for threads in bench.threads:
        bench.timed(SMALL, "transformers", runs | (more if threads == 1 else {}), facts, threads)


def dense(build: Callable[[torch.dtype], nn.Module]) -> tuple[dict[str, nn.Module], dict[str, list[Any]]]:
    """A network in float32 and bfloat16, and what is known of each: megabytes, tokens, seconds to load."""
    nets = {name: build(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    return nets, {name: [memory_of(net) / 1e6, None, None] for name, net in nets.items()}


def claims(rows: Rows, loading: Rows) -> Rows:
    """The bars: speed over float32 and bfloat16 for each number of threads, memory, text, loading."""
    made = []
    for _, weights, _, threads, _, *times, _, _, _ in rows:
        for bits in BITS:
            if weights == f"{bits:g} bits packed, 8-bit inputs":
                what = f"{bits:g} bits, 8-bit inputs, {threads} thread{'s' * (threads > 1)}: times as fast as"
                wanted = {"float32": 4.0, "bfloat16": 2.0}
                made += [claim(f"{what} {t}", found, wanted[t], ".2f") for t, found in zip(wanted, times, strict=True)]
    at = {row[1]: row for row in rows}
    for bits in BITS:
        row, base = (at.get(name) for name in (f"{bits:g} bits packed, 16-bit inputs", "float32"))
        if row and base:
            made.append(
                claim(f"{bits:g} bits: weights in memory, of float32", row[7] / base[7], 0.2, ".3f", at_most=True)
            )
            made.append(claim(f"{bits:g} bits, 16-bit inputs: tokens are those of dense weights", row[8], 1, "d"))
    if loading:
        made.append(
            claim("millions of weights a second from a file to packed layers", max(r[3] for r in loading), 150, ".0f")
        )
    return made


if __name__ == "__main__":
    main()
