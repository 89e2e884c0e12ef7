"""Weights of trained networks as codes: what they cost in real bytes, beside entropy, Zstandard and DeepCABAC."""

from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from lib.common import Table, claim
from lib.networks import State, networks

from waterfill.coding.codes import matrix
from waterfill.coding.stream import Writer
from waterfill.network.layout import layout_of

STEPS = (0.25, 0.5, 1.0)
DEEPCABAC = {
    "ResNet-20": (3.871, 2.896, 1.959),
    "ResNet-56": (3.809, 2.844, 1.915),
    "SqueezeNet 1.1": (None, 2.995, None),
    "MobileNetV1 0.25": (None, 2.998, None),
    "Llama 260K": (None, 3.037, None),
    "LSTM 2x128": (None, 2.925, None),
}
"""Bits per weight of the same codes through NNCodec's coder at STEPS: measured once, elsewhere, and quoted here."""
BARS = {("ResNet-20", 0.5): 2.69, ("ResNet-56", 0.5): 2.60, ("SqueezeNet 1.1", 0.5): 2.86}
BELOW_DEEPCABAC = 0.94
COLUMNS = {
    "network": "",
    "step / deviation": ".2f",
    "entropy per layer": ".3f",
    "zstd 19": ".3f",
    "DeepCABAC (quoted)": ".3f",
    "waterfill": ".3f",
    "of DeepCABAC, %": ".1f",
    "tally": ".3f",
    "over tally, %": ".2f",
}


def weights_table(folder: Path) -> Table:
    """A row for every network and step."""
    rows = [
        code_network(name, networks()[name].state(folder), step, quoted)
        for name, every in DEEPCABAC.items()
        for step, quoted in zip(STEPS, every, strict=True)
    ]
    return Table("Weights rounded to a step per layer, bits per weight with all side information", COLUMNS, rows)


def code_network(name: str, state: State, step: float, quoted: float | None) -> list[Any]:
    """A row: every tensor of two or more dimensions, rounded to `step` of its standard deviation."""
    entries = real = ideal = entropy = packed = 0.0
    for tensor in state.values():
        if tensor.ndim < 2:
            continue
        layout = layout_of(tuple(tensor.shape), tensor.dtype)
        values = tensor.float().numpy().reshape(layout.matrix)
        codes = matrix.narrow(np.rint(values / (step * values.std())).astype(np.int32))
        plan = matrix.plan(codes, layout.kernel)
        out = Writer()
        out.put(plan)
        entries += codes.size
        real += 8 * len(out.finish())
        ideal += plan.bits
        share = np.unique(codes, return_counts=True)[1] / codes.size
        entropy -= codes.size * float((share * np.log2(share)).sum())
        packed += 8 * len(zstandard.ZstdCompressor(level=19).compress(codes.tobytes()))
    bits = real / entries
    other = [entropy / entries, packed / entries, quoted]
    ratio = 100 * bits / quoted if quoted else None
    return [name, step, *other, bits, ratio, ideal / entries, 100 * (real / ideal - 1)]


def weight_claims(table: Table) -> list[list[Any]]:
    """The bars, and 6 % below DeepCABAC at the other steps of the ResNets."""
    claims = []
    for name, step, _, _, quoted, bits, *_ in table.rows:
        bar = BARS.get((name, step))
        if bar is None and quoted and name.startswith("ResNet"):
            bar = BELOW_DEEPCABAC * quoted
        if bar is not None:
            claims.append(claim(f"{name} at a step of {step:g}, bits per weight", bits, bar, ".3f", at_most=True))
    over = max(abs(row[-1]) for row in table.rows)
    return [*claims, claim("real size off the tally, %", over, 1.0, ".2f", at_most=True)]
