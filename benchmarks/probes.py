"""What an error in one matrix costs a network: the measurements behind what is assumed without data.

White errors of a tenth of the norm go into one matrix at a time; its cost is twice the divergence over the square of
that tenth. Of a language model that transformers opens (`lib/language.py`), one block in `STRIDE` is measured, and
errors of three shapes go into all matrices of a kind at once: alike everywhere, relative to columns, relative to rows,
of one geometric mean and thus of one rate.

    python benchmarks/probes.py [--networks LeNet-300-100,SmolLM2-135M]
"""

import argparse
import re
import statistics
import zlib
from collections import defaultdict
from collections.abc import Iterator

import torch
from lib.common import Table, data_folder, finish
from lib.language import NAME, language_models, missing
from lib.networks import Evaluator, State, networks
from torch import Tensor

SHARE = 0.1
"""Of a matrix's norm, its error alone."""
SHARE_OF_ALL = 0.08
"""Of the norm, the errors of all matrices of a kind."""
STRIDE = 6
SHAPES = {"alike everywhere": (), "relative to columns": (0,), "relative to rows": (1,)}
"""Name of a shape of errors -> the dimensions over which their size is averaged."""
PROBED = ("MobileNetV1 0.25", "Llama 260K", "LSTM 2x128", "LeNet-300-100", "ResNet-20")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join((*PROBED, NAME)), help="names, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, known = data_folder(), networks() | language_models()
    costs, lines = [], []
    for name in options.networks.split(","):
        if name == NAME and missing():
            print(f"skipped: {NAME}: {missing()}")
            continue
        state = known[name].state(folder)
        measure = known[name].prepare(folder, state, True)
        costs += list(cost_rows(name, state, measure))
        print(*costs[-1], flush=True)
        if name == NAME:
            lines += list(line_rows(state, measure))
    columns = {"network": "", "matrices": "", "measured": "d", "entries": "d"}
    columns |= {"least cost": ".2g", "median": ".2g", "greatest": ".2g"}
    shapes = {"matrices": "", **dict.fromkeys(SHAPES, ".3f")}
    tables = {
        "costs": Table("Nats that the error of one matrix costs, over half of its relative square", columns, costs),
        "lines": Table(f"{NAME}: divergence by the shape of errors", shapes, lines),
    }
    partial = options.networks != ",".join((*PROBED, NAME)) or not lines
    finish("probes", tables, vars(options), partial=partial, shown=tables)


def kinds(state: State) -> dict[str, list[str]]:
    """The matrices of a network by their names, numbers of blocks left out, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        if tensor.ndim >= 2 and tensor.is_floating_point():
            found[_NUMBER.sub("*", name)].append(name)
    return found


def cost_rows(network: str, state: State, measure: Evaluator) -> Iterator[list[object]]:
    """A row for every kind: the costs of its matrices."""
    for kind, names in kinds(state).items():
        some = names[::STRIDE] if network == NAME else names
        costs = []
        for name in some:
            found = measure(state | {name: disturbed(name, state[name], SHARE, ())})
            costs.append(2 * (found.divergence or 0.0) / SHARE**2)
        entries = state[some[0]].numel()
        yield [network, kind, len(some), entries, min(costs), statistics.median(costs), max(costs)]


def line_rows(state: State, measure: Evaluator) -> Iterator[list[object]]:
    """A row for every kind: the divergence when all of its matrices have errors of each shape."""
    for kind, names in kinds(state).items():
        made = []
        for over in SHAPES.values():
            errors = {name: disturbed(name, state[name], SHARE_OF_ALL, over) for name in names}
            made.append(measure(state | errors).divergence)
        yield [kind, *made]


def disturbed(name: str, value: Tensor, share: float, over: tuple[int, ...]) -> Tensor:
    """A matrix with Gaussian errors whose geometric mean size is `share` of the root mean square entry.

    over: the dimensions of [rows, the rest] over which sizes are averaged; (): errors alike everywhere.
    """
    matrix = value.float().flatten(1)
    size = matrix.square().mean(over, keepdim=True).sqrt() if over else torch.ones(1, 1)
    size = size.clamp_min(1e-6 * float(size.max()))
    size = size / size.log().mean().exp() * share * matrix.square().mean().sqrt()
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return (matrix + size * noise).reshape(value.shape)


if __name__ == "__main__":
    main()
