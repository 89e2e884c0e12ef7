"""What llama.cpp makes of a language model in each of its formats: bytes and quality, beside ours in one measure.

SmolLM2-135M, whose folder `WATERFILL_SMOLLM2` names, is quantized by `llama-quantize` with an importance matrix of 32
sequences of 256 tokens, the first of the text that ours is calibrated with. The weights are restored in PyTorch, and
measured there on the windows of `language_model.py`: so what differs is the weights alone. llama.cpp itself also rounds
what goes into a product, which costs a little more. Formats in blocks of 256 do not fit a network of width 576; they
are measured a second time with four rows as one, which llama.cpp cannot run. Rows are written as they come; `--resume`
goes on.

    python benchmarks/llama_cpp.py --tools FOLDER [--resume] [--all] [--formats Q4_K_M,...] [--work FOLDER]
"""

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from language_model import BLOCKS, TEXT, network, tokens
from lib import language
from lib.common import Table, data_folder, finish, measured_before
from lib.networks import Evaluator, State
from opponents import gguf_files

from waterfill.network.tensors import tensors_of

TOOLS, QUANTIZE = "LLAMA_CPP", "llama-quantize"
SEQUENCES, LENGTH = 32, 256
AS_IT_IS, TOGETHER = "as it is", "4 rows as one"


@dataclass(frozen=True)
class Case:
    """A file. embedding: the format of the embedding, where it is not llama.cpp's own choice."""

    format: str
    rows: str = AS_IT_IS
    embedding: str = ""

    @property
    def key(self) -> list[str]:
        """What tells its row from others."""
        return [self.format, self.rows, self.embedding]


CASES = (
    Case("Q4_K_M"),
    Case("Q3_K_M", TOGETHER),
    Case("IQ3_XXS", TOGETHER, "IQ3_S"),
    Case("IQ2_S", TOGETHER, "IQ3_S"),
    Case("Q4_K_M", TOGETHER),
    Case("Q4_0"),
    Case("Q2_K", TOGETHER),
    Case("IQ4_XS", TOGETHER, "IQ4_XS"),
    Case("Q8_0"),
)
MORE = (
    Case("IQ3_XXS", TOGETHER),
    Case("Q2_K"),
    Case("IQ3_S", TOGETHER, "IQ3_S"),
    Case("IQ2_XXS", TOGETHER, "IQ3_S"),
    Case("IQ2_S", AS_IT_IS, "IQ4_NL"),
    Case("IQ2_XXS", TOGETHER, "Q2_K"),
    Case("IQ4_XS"),
    Case("Q3_K_M"),
    Case("IQ3_S"),
    Case("IQ3_XXS"),
    Case("IQ2_S", TOGETHER),
    Case("IQ2_XS", TOGETHER),
    Case("IQ2_XXS", TOGETHER),
)
"""Further ones, for --all. In the order in which they are measured: what matters most comes first."""
COLUMNS = {"format": "", "rows": "", "embedding": "", "bytes": ",d", "file": ",d", "bits": ".2f", "perplexity": ".2f"}
COLUMNS |= {"divergence": ".4f", "CPU seconds": ".0f", "weights in": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tools", type=Path, default=os.environ.get(TOOLS), help=f"the folder of {QUANTIZE}")
    parser.add_argument("--work", type=Path, help="keeps the files that all formats start from")
    parser.add_argument("--formats", default="", help="only these")
    parser.add_argument("--all", action="store_true", help="further files too")
    parser.add_argument("--resume", action="store_true", help="keep what the results hold")
    options = parser.parse_args()
    if reason := language.missing() or missing(options.tools):
        print(f"skipped: {reason}")
        sys.exit(0)
    rows = measured_before("llama_cpp", "formats") if options.resume else []
    cases = CASES + MORE if options.all else CASES
    wanted = [case for case in cases if not options.formats or case.format in options.formats.split(",")]
    left = [case for case in wanted if case.key not in [row[:3] for row in rows]]
    if left:
        with working(options.work) as place:
            bench = Bench(Path(options.tools) / QUANTIZE, place)
            for case in left:
                rows.append(bench.row(case))
                write(rows)
                print(*rows[-1], flush=True)
    write(rows)


def missing(tools: "Path | str | None") -> str:
    """Why nothing can be measured here; empty where it can."""
    if importlib.util.find_spec("gguf") is None:
        return "it needs the package gguf"
    if not tools:
        return f"neither --tools nor {TOOLS} names the folder of {QUANTIZE}: see docs/results/llama_cpp.md"
    return "" if (Path(tools) / QUANTIZE).is_file() else f"there is no {QUANTIZE} in {tools}"


@contextmanager
def working(folder: Path | None) -> Iterator[Path]:
    """The folder for the files, or one that goes away again."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


class Bench:
    """The original and its importance matrix as llama.cpp reads them, and what measures a file."""

    def __init__(self, quantize: Path, place: Path) -> None:
        self.quantize, self.place = quantize, place
        self.folder = Path(os.environ[language.FOLDER])
        model = network(BLOCKS)
        self.like: State = {name: tensor.clone() for name, tensor in tensors_of(model)[0].items()}
        self.weights = sum(tensor.numel() for tensor in self.like.values())
        self.sources = {AS_IT_IS: place / "float32.gguf", TOGETHER: place / "together.gguf"}
        if not self.sources[AS_IT_IS].is_file():
            gguf_files.write_original(self.folder, place)
        if not self.sources[TOGETHER].is_file():
            gguf_files.laid_together(self.sources[AS_IT_IS], self.sources[TOGETHER])
        self.importance = {rows: place / f"{source.stem}.imatrix.gguf" for rows, source in self.sources.items()}
        if not all(path.is_file() for path in self.importance.values()):
            self.collect(model)
        self.evaluate = evaluator(model, self.like)

    def collect(self, model: Any) -> None:
        """Write the importance matrix, of rows as they are and of rows together."""
        sequences = tokens(data_folder() / TEXT, SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH)
        squares = gguf_files.mean_squares(model, sequences)
        gguf_files.write_importance(squares, self.importance[AS_IT_IS], TEXT, (SEQUENCES, LENGTH))
        tiled = {name: np.tile(values, gguf_files.rows_together(len(values))) for name, values in squares.items()}
        gguf_files.write_importance(tiled, self.importance[TOGETHER], TEXT, (SEQUENCES, LENGTH))

    def row(self, case: Case) -> list[Any]:
        """A row of the table."""
        target = self.place / "quantized.gguf"
        command = [self.quantize, "--imatrix", self.importance[case.rows]]
        command += ["--token-embedding-type", case.embedding.lower()] if case.embedding else []
        command += [self.sources[case.rows], target, case.format, "1"]
        began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{QUANTIZE} fails at {case.format}:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began
        size, types = gguf_files.contents(target)
        found = self.evaluate(gguf_files.restored(target, self.folder, self.like))
        measures = [8 * size / self.weights, found.quality, found.divergence, seconds, types]
        return [*case.key, size, target.stat().st_size, *measures]


def evaluator(model: Any, like: State) -> Evaluator:
    """Measures weights as `language_model.py` does."""
    windows = tokens(data_folder() / language.TEXT, language.WINDOW * language.WINDOWS).split(language.WINDOW)
    return language.by_windows(lambda window: model(window[None]).logits[0, :-1], model, like, windows)


def write(rows: list[list[Any]]) -> None:
    """The results; partial until every case has its row, but for the further ones."""
    kept = sorted(rows, key=lambda row: (row[1] != AS_IT_IS, -row[3]))
    title = f"SmolLM2-135M in llama.cpp's formats, importance matrix of {SEQUENCES} sequences of {LENGTH} tokens"
    partial = any(case.key not in [row[:3] for row in rows] for case in CASES)
    options = {"sequences": SEQUENCES, "length": LENGTH, "files": len(rows)}
    finish("llama_cpp", {"formats": Table(title, COLUMNS, kept)}, options, partial=partial, shown=())


if __name__ == "__main__":
    main()
