"""Whole networks that run packed beside the same networks as they were: time, memory, and what they say.

Networks are compressed without inputs to 4 bits of the whole file and packed, with 16-bit inputs. The outputs are
compared with those of the same file restored to dense weights. The LSTM also writes text, a character at a time. Large
batches go through one linear layer. Times are the shortest of several runs, taken in turns; with one thread they are
those of the processor, from which other programs take little away.

    python benchmarks/packed.py [--threads 1] [--bits 4]
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish
from lib.networks import networks
from lib.turns import clock, in_turns
from torch import Tensor, nn

import waterfill
from waterfill.part import Codes, Levels
from waterfill.runtime import table
from waterfill.runtime.blocked.crossover import NEVER, Kind, crossover
from waterfill.runtime.speed import memory_of
from waterfill.runtime.terms import term_of

NETWORKS = ("SqueezeNet 1.1", "ResNet-20", "LSTM 2x128", "Llama 260K")
SIZES = (1, 32)
CHARACTERS = 300
SHAPES = ("4096x4096", "1024x1024", "172x64")
BATCHES = (16, 64, 512, 4096)
MANY = 60_000
"""Inputs for matrices with few entries."""
ROUNDS, SECONDS = 50, 10.0
"""Rounds of which the shortest counts: so many, or at least three and so many seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parser.add_argument("--bits", type=float, default=4.0, help="of the whole file, per weight")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="rows x columns of the linear layers")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="inputs at a time for these")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = data_folder()
    with torch.inference_mode():
        known = networks()
        rows, layers, text = [], [], []
        for name in NETWORKS:
            dense, packed, batch = pair(name, known[name].file, folder, options.bits)
            rows += compared(name, dense, packed, batch)
            layers += [[name, *counted(packed)]]
            if name.startswith("LSTM"):
                text = written(dense, packed)
        large = [row for shape in options.shapes.split(",") for row in batches(shape, options.batches)]
    tables = {
        "networks": Table("Networks packed and dense", NETWORK_COLUMNS, rows),
        "layers": Table("Layers that run packed", LAYER_COLUMNS, layers),
        "text": Table(f"The LSTM writes {CHARACTERS} characters, one at a time", TEXT_COLUMNS, [text]),
        "large": Table("Linear layers and large batches", LARGE_COLUMNS, large),
        "crossover": crossovers(),
    }
    tables["claims"] = claims_table(claims(rows, text, large))
    partial = any(getattr(options, key) != parser.get_default(key) for key in vars(options))
    finish("packed", tables, vars(options), partial=partial, shown=tables)


NETWORK_COLUMNS = {"network": "", "inputs": "d", "dense, ms": ".2f", "packed, ms": ".2f", "packed over dense": ".2f"}
NETWORK_COLUMNS |= {"dense, MB": ".3f", "packed, MB": ".3f", "outputs differ": ".1g"}
LAYER_COLUMNS = {"network": "", "packed": "d", "dense": "d", "why these are dense": ""}
TEXT_COLUMNS = {"dense, µs a character": ".0f", "packed, µs a character": ".0f", "packed over dense": ".2f"}
TEXT_COLUMNS |= {"same text": ""}
LARGE_COLUMNS = {"matrix": "", "batch": "d", "inputs": "", "weights": "", "ms": ".2f", "time over dense": ".2f"}
LARGE_COLUMNS |= {"error": ".1g"}


def pair(name: str, file: str, folder: Path, bits: float) -> tuple[nn.Module, nn.Module, Any]:
    """The network with restored weights and packed, and inputs for it."""
    state = networks()[name].state(folder)
    made = waterfill.compress(state, bits=bits)
    dense = made.install(model_of(name, folder, state)).eval()
    pieces = calibration_batches(name, folder, max(SIZES))
    if pieces[0].ndim == 2:  # texts, of which some end early
        pieces = [piece[:, : min(each.shape[1] for each in pieces)] for piece in pieces]
    batch = torch.cat(pieces)[: max(SIZES)]
    return dense, waterfill.pack(made, model_of(name, folder, state)), batch


def first(made: Any) -> Tensor:
    """The outputs, without a state."""
    return made if isinstance(made, Tensor) else made[0]


def compared(name: str, dense: nn.Module, packed: nn.Module, batch: Tensor) -> list[list[Any]]:
    """Rows of one network: for each number of inputs, times, memory, and the relative difference of the outputs."""
    wanted = first(dense(batch))
    error = float((first(packed(batch)) - wanted).norm() / wanted.norm())
    rows = []
    for size in SIZES:
        seconds = in_turns(
            {"dense": partial(dense, batch[:size]), "packed": partial(packed, batch[:size])}, ROUNDS, SECONDS
        )
        own, other = 1e3 * seconds["dense"], 1e3 * seconds["packed"]
        sizes = [memory_of(model) / 1e6 for model in (dense, packed)]
        rows.append([name, size, own, other, other / own, *sizes, error])
        print(*rows[-1], flush=True)
    return rows


def counted(packed: nn.Module) -> list[Any]:
    """Layers that run packed, those that do not, and why."""
    rows = table(packed)
    whole = [row for row in rows if row["runs"] == "dense"]
    return [len(rows) - len(whole), len(whole), "; ".join(dict.fromkeys(row["why"] for row in whole)) or "-"]


def written(dense: nn.Module, packed: nn.Module) -> list[Any]:
    """Microseconds for a character, and whether both write the same."""
    runs = []
    for model in (dense, packed):
        times, tokens = [], []
        for _ in range(3):
            token, state, tokens = torch.zeros(1, 1, dtype=torch.int64), None, []
            began = clock()
            for _ in range(CHARACTERS):
                logits, state = model(token, state)
                token = logits[:, -1:].argmax(-1)
                tokens.append(int(token))
            times.append((clock() - began) / CHARACTERS * 1e6)
        runs.append((min(times), tokens))
    (own, text), (other, again) = runs
    return [own, other, other / own, text == again]


def batches(shape: str, sizes: str) -> list[list[Any]]:
    """Rows of one matrix: dense and packed, for float32 and for bfloat16 inputs."""
    height, width = map(int, shape.split("x"))
    torch.manual_seed(0)
    codes = torch.randint(-8, 8, (height, width), dtype=torch.int8)
    coded = Codes(codes, torch.full((height, 1), 0.01), columns=torch.ones(width))
    looked_up = Levels(torch.randn(16).sort()[0], (codes + 8).to(torch.uint8))
    terms = {"4-bit codes": term_of(coded, 2), "4-bit codes, 8-bit inputs": term_of(coded, 1)}
    terms["table of 16 values"] = term_of(looked_up, 2)
    rows = []
    counts = [int(size) for size in sizes.split(",")] + ([MANY] if height * width < MANY else [])
    for batch in counts:
        for dtype in (torch.float32, torch.bfloat16) if batch <= 512 else (torch.float32,):
            x = torch.randn(batch, width).to(dtype)
            weight = coded.matrix().to(dtype)
            actions: dict[str, Callable[[Tensor], Tensor]] = {"dense": lambda x, w=weight: F.linear(x, w), **terms}
            seconds = in_turns({name: partial(action, x) for name, action in actions.items()}, ROUNDS, SECONDS)
            for name, action in actions.items():
                exact = (looked_up if "values" in name else coded).matrix()
                wanted = x.float() @ exact.T
                error = float((action(x).float() - wanted).norm() / wanted.norm())
                kind = str(dtype).removeprefix("torch.")
                row = [f"{height} x {width}", batch, kind, name, 1e3 * seconds[name]]
                rows.append([*row, seconds[name] / seconds["dense"], error])
                print(*rows[-1], flush=True)
    return rows


def crossovers() -> Table:
    """The number of inputs from which products are of floats, as this machine measured it."""
    columns = {"bits of a code": "d", "matrix": "", "16-bit inputs": "", "8-bit inputs": ""}

    def words(bits: int, shape: tuple[int, int], size: int) -> str:
        found = crossover(Kind.of(shape, bits, size, torch.float32))[0]
        return "never" if found == NEVER else f"{found:,}"

    rows = [
        [bits, f"{shape[0]} x {shape[1]}", words(bits, shape, 2), words(bits, shape, 1)]
        for bits in (2, 3, 4, 5, 6, 8)
        for shape in ((64, 64), (1024, 1024), (4096, 4096))
    ]
    return Table("Inputs from which packed layers multiply as floats", columns, rows)


def claims(rows: list[list[Any]], text: list[Any], large: list[list[Any]]) -> list[list[Any]]:
    """The bars: memory, time at a batch of 32, the text, and large batches beside dense ones."""
    made = []
    for row in rows:
        if row[1] == 32:
            made.append(claim(f"{row[0]}: memory packed over dense", row[6] / row[5], 0.3, ".3f", at_most=True))
            made.append(claim(f"{row[0]}, 32 inputs: time packed over dense", row[4], 1.25, ".2f", at_most=True))
            made.append(claim(f"{row[0]}: relative difference of outputs", row[7], 1e-3, ".1g", at_most=True))
    if text:
        made.append(claim("the LSTM writes the same text packed", text[3], 1, "d"))
    for row in large:
        if row[1] >= 64 and row[3] == "4-bit codes":
            what = f"{row[0]}, {row[1]:,} inputs in {row[2]}, 4-bit codes: time over dense"
            made.append(claim(what, row[5], 1.2, ".2f", at_most=True))
    return made


if __name__ == "__main__":
    main()
