"""Networks compressed block by block: time and memory by size, kills at random moments, and a folder of a large model.

depth: random networks of one width and more and more blocks, each in a process of its own on one thread: its processor
seconds and the rise of its peak of memory over the network itself, while it is compressed block by block at a price.
width: likewise, of a few blocks that are wider and wider. kills: the folder of a small random Llama, compressed once
undisturbed and then killed at random moments until it ends; the files are compared byte by byte. large: the folder of a
random Llama with the sizes of one of 1.1 billion weights (width 2048, 5632 inside, 32000 tokens) with some of its 22
blocks: processor seconds, peak of memory, and the most that its work directory holds. The last two need transformers.

    python benchmarks/depth.py [--resume] [--tables depth,width,kills,large] [--kills 20] [--blocks 4,8] [--large 3]
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lib.common import Table, claim, claims_table, finish, measured_before
from torch import Tensor, nn

WIDTH, VOCABULARY, BATCHES, LENGTH = 256, 512, 16, 128
INNER, HEADS = 2.5, 4
"""Times the width, and of how many heads each block is."""
DEPTHS, KILLS, LARGE, SEED = (2, 4, 8, 16, 30), 20, 3, 0
WIDTHS, FEW = (128, 256, 512, 1024), 4
"""And of how many blocks networks of these widths are."""
PRICE = 5e-10
"""About 3 bits. A budget in bits would be met by one pass through the blocks, or by a second one where it was not."""
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 128,
}
FULL = {
    **{"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4},
    "vocab_size": 32000,
}
DEPTH_COLUMNS = {
    "blocks": "d",
    "weights": ",d",
    "CPU seconds": ".1f",
    "per block": ".2f",
    "peak over the network, MB": ".0f",
    "bits": ".2f",
}
WIDTH_COLUMNS = {
    "width": "d",
    "weights": ",d",
    "CPU seconds": ".1f",
    "per million weights": ".2f",
    "peak over the network, MB": ".0f",
    "bits": ".2f",
}
KILL_COLUMNS = {"kills": "d", "same bytes": "", "left over": "d"}
NAMES = ("depth", "width", "kills", "large")
LARGE_COLUMNS = {"blocks": "d", "weights": ",d", "CPU seconds": ".0f", "peak, GB": ".2f", "work directory, GB": ".2f"}


class Block(nn.Module):
    """As of a Llama, without rotation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(INNER * width)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Stack(nn.Module):
    """A language model of so many blocks."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", default=",".join(NAMES))
    parser.add_argument("--blocks", default=",".join(map(str, DEPTHS)))
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--large", type=int, default=LARGE, help="blocks of the large model")
    parser.add_argument("--resume", action="store_true", help="keep the other tables that the results hold")
    parser.add_argument("--one", type=int, nargs=2, help="the row of a depth and a width, in this process, as JSON")
    parser.add_argument("--folder", nargs=2, help="compress a folder into another, and print a row as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(of_size(*options.one)))
        return
    if options.folder:
        print(json.dumps(of_folder(*options.folder)))
        return
    wanted = options.tables.split(",")
    if importlib.util.find_spec("transformers") is None:
        wanted = [name for name in wanted if name in ("depth", "width")]
    depths = list(map(int, options.blocks.split(",")))
    rows = {name: measured_before("depth", name) if options.resume else [] for name in NAMES}
    for name in wanted:
        rows[name] = {
            "depth": lambda: [[blocks, *of_apart(blocks, WIDTH, per=blocks)] for blocks in depths],
            "width": lambda: [[width, *of_apart(FEW, width)] for width in WIDTHS],
            "kills": lambda: [killed(options.kills)],
            "large": lambda: [large(options.large)],
        }[name]()
        partial = not all(rows.values()) or options.kills != KILLS or tuple(depths) != DEPTHS
        write(rows, vars(options), partial)


def write(rows: dict[str, list[list[Any]]], options: dict[str, Any], partial: bool) -> None:
    made = []
    if len(rows["depth"]) > 1:
        each = {row[0]: row[3] for row in rows["depth"]}
        peaks = {row[0]: row[4] for row in rows["depth"]}
        least, most = min(each), max(each)
        text = f"of {most} blocks over {least}"
        made.append(claim(f"seconds a block, {text}", each[most] / each[least], 1.25, ".2f", at_most=True))
        rise = peaks[most] / max(1.0, peaks[least])
        made.append(claim(f"peak over the network, {text}", rise, 1.5, ".2f", at_most=True))
    for kills, same, left in rows["kills"]:
        made.append(claim(f"{kills} kills: other bytes, and files left over", (not same) + left, 0, "d", at_most=True))
    for row in rows["large"]:
        made.append(claim("1.1 billion weights, some blocks: peak, GB", row[3], 6, ".2f", at_most=True))
        made.append(claim("1.1 billion weights, some blocks: disk, GB", row[4], 20, ".2f", at_most=True))
    tables = {
        "depth": Table("Time and memory by depth", DEPTH_COLUMNS, rows["depth"]),
        "width": Table("Time and memory by width", WIDTH_COLUMNS, rows["width"]),
        "kills": Table("Killed at random moments", KILL_COLUMNS, rows["kills"]),
        "large": Table("A folder with the sizes of 1.1 billion weights", LARGE_COLUMNS, rows["large"]),
        "claims": claims_table(made),
    }
    finish(
        "depth", tables, {name: options[name] for name in ("blocks", "kills", "large")}, partial=partial, shown=tables
    )


def of_apart(blocks: int, width: int, per: int | None = None) -> list[Any]:
    """Weights, processor seconds, those for each of so many (default: of a million weights), megabytes, and bits."""
    weights, seconds, *rest = apart("--one", str(blocks), str(width))
    return [weights, seconds, seconds / (weights / 1e6 if per is None else per), *rest]


def of_size(blocks: int, width: int) -> list[Any]:
    """Of a network of so many blocks: weights, processor seconds, megabytes over the network itself, and bits."""
    import waterfill

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = Stack(blocks, width)
    batches = list(torch.randint(0, VOCABULARY, (BATCHES, LENGTH)).split(1))
    model(batches[0])
    before, began = peak(), time.process_time()
    how = waterfill.Options(blocks="layers", threads=1, memory=1 << 24)
    made = waterfill.compress(model, batches, spec="Quantize()", price=PRICE, options=how)
    return [made.weights, time.process_time() - began, 1000 * (peak() - before), 8 * made.size / made.weights]


def peak() -> float:
    """The largest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def apart(*words: str) -> list[Any]:
    """A row, measured in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    row: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def folder_of(place: Path, sizes: dict[str, int]) -> Path:
    """The folder of a random Llama with a tokenizer of the words w0, w1, ..., and a text beside it."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=512, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(place / "net", max_shard_size="200MB")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(sizes["vocab_size"])}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(place / "net")
    some = random.Random(SEED)
    text = (f"w{some.randrange(sizes['vocab_size'])}" for _ in range(20_000))
    (place / "text.txt").write_text(" ".join(text))
    return place / "net"


def of_folder(source: str, target: str) -> list[Any]:
    """Compress a folder with the text beside it: processor seconds, and the peak of memory in GB."""
    import waterfill
    import waterfill.hf

    torch.set_num_threads(1)
    small = json.loads((Path(source) / "config.json").read_text())["hidden_size"] < FULL["hidden_size"]
    windows = waterfill.hf.Windows(8, 32) if small else waterfill.hf.Windows(32, 512)
    how = waterfill.Options(blocks="model.layers", threads=1)
    text = Path(source).parent / "text.txt"
    waterfill.hf.compress_folder(source, target, "Quantize()", bits=3, text=text, windows=windows, options=how)
    return [time.process_time(), peak()]


def killed(kills: int) -> list[Any]:
    """A row: kills, whether the bytes are the same, and files that are left."""
    with tempfile.TemporaryDirectory() as name:
        place, chance, done = Path(name), random.Random(SEED), 0
        source = folder_of(place, SMALL)
        began = time.monotonic()
        apart("--folder", str(source), str(place / "whole"))
        took = time.monotonic() - began
        while done < kills or not (place / "small").exists():
            if (place / "small").exists():  # whole before a kill came: the next one begins anew
                assert same(place), "another file"
                (place / "small").rename(place / f"ended-{done}-{chance.random()}")
            command = [sys.executable, __file__, "--folder", str(source), str(place / "small")]
            running = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
            try:
                running.wait(took * chance.uniform(0.3, 0.9) if done < kills else None)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
                done += 1
        known = {"net", "text.txt", "whole", "small"}
        left = [path for path in place.iterdir() if path.name not in known and not path.name.startswith("ended-")]
        return [kills, same(place), len(left)]


def same(place: Path) -> bool:
    """Whether the disturbed run has written the bytes of the other."""
    return (place / "small/model.wf").read_bytes() == (place / "whole/model.wf").read_bytes()


def large(blocks: int) -> list[Any]:
    """A row: blocks, weights, processor seconds, the peak in GB, and the most that the work directory held in GB."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = folder_of(place, FULL | {"num_hidden_layers": blocks})
        command = [sys.executable, __file__, "--folder", str(source), str(place / "small")]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        most = 0.0
        while running.poll() is None:
            time.sleep(1)
            most = max(most, held(place / "small.work"))
        if running.returncode:
            raise RuntimeError("the compression of the large folder failed")
        assert running.stdout is not None
        seconds, gigabytes = json.loads(running.stdout.read().splitlines()[-1])
        weights = FULL["vocab_size"] * FULL["hidden_size"] * 2 + blocks * 44_044_288 + FULL["hidden_size"]
        return [blocks, weights, seconds, gigabytes, most]


def held(folder: Path) -> float:
    """Gigabytes of the files in a folder that another process works in."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total / 1e9


if __name__ == "__main__":
    main()
