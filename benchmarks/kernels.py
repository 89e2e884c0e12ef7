"""Products with packed weights beside those people use: float32, bfloat16, dynamic int8, ONNX Runtime's 4, 2, 8 bits.

Every product goes through several copies of its weights in turn, together larger than the caches, so that weights come
from memory as they do in a large network. Products take turns, and the shortest run counts: of processor seconds with
one thread, of the wall's with more.

    python benchmarks/kernels.py [--threads 1] [--shapes 4096x4096] [--batches 1,32]
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lib.common import Table, claim, claims_table, finish
from lib.turns import in_turns
from torch import Tensor

from waterfill.coding import native
from waterfill.part import Chain, Codes, Entries, Sum
from waterfill.runtime.leaves import Term
from waterfill.runtime.terms import term_of

Built = tuple[Callable[[Tensor], Tensor], Tensor] | None
"""A product, and the matrix that it multiplies by; None where it cannot be had."""
SHAPES = ("4096x4096", "1024x4096")
BATCHES = (1, 32, 128)
MEMORY = 64 << 20
"""Bytes of weights that a product with one input goes through; with more, weights are read from the caches anyway."""
ROUNDS, SECONDS = 40, 60.0
"""Rounds of which the shortest run counts: so many, or at least three and so many seconds."""
WIDTHS = (2, 3, 4, 5, 6, 8)
RANK, KEPT, SPARSE = 32, 0.01, 0.1
GROUP = 128
READ, SHARE = "sum of as many floats", 0.7
"""What memory is read with as fast as it goes, and the share of that speed that products are to reach."""
FLOATS, HALVES, DYNAMIC = "float32", "bfloat16", "torch, dynamic int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="rows x columns")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="inputs at a time")
    options = parser.parse_args()
    rows: list[list[Any]] = []
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        for shape in options.shapes.split(","):
            height, width = map(int, shape.split("x"))
            for batch in map(int, options.batches.split(",")):
                rows += measured(height, width, batch, threads)
    whole = all(getattr(options, key) == parser.get_default(key) for key in vars(options))
    sets = ", ".join(native.core.product_sets()) if native.core is not None else "none"
    columns = {"threads": "d", "matrix": "", "batch": "d", "product": "", "weights, MB": ".2f", "µs": ".0f"}
    columns |= {"times as fast as float32": ".2f", "GB/s of weights": ".1f", "error": ".1g"}
    tables = {"products": Table(f"Products of packed weights (instruction sets: {sets})", columns, rows)}
    tables["claims"] = claims_table(claims(rows))
    name = "kernels_vnni" if "vnni" in sets else "kernels"  # two sorts of processors, two records
    finish(name, tables, vars(options), partial=not whole, shown=tables)


def measured(height: int, width: int, batch: int, threads: int) -> list[list[Any]]:
    """Rows of one matrix and batch, that of float32 first."""
    torch.manual_seed(0)
    x = torch.randn(batch, width)
    weight = torch.randn(height, width) / width**0.5
    facts: dict[str, tuple[float, float, int]] = {}
    actions: dict[str, Callable[[], object]] = {}
    for name, size, build in candidates(weight, x):
        made = build()
        if made is None:
            continue
        copies = max(1, min(24, round(MEMORY / size))) if batch == 1 else 1
        action, exact = made
        error = float((action(x).float() - x @ exact.T).norm() / (x @ exact.T).norm())
        facts[name] = (size, error, copies)
        actions[name] = partial(through, [action, *(build_again(build, made) for _ in range(copies - 1))], x)
    if batch == 1:
        places = [weight.clone() for _ in range(max(1, MEMORY // (4 * weight.numel())))]
        facts[READ] = (4.0 * weight.numel(), 0.0, len(places))
        actions[READ] = lambda: [place.sum() for place in places]
    times = in_turns(actions, ROUNDS, SECONDS)
    found = [(name, size, times[name] / copies, error) for name, (size, error, copies) in facts.items()]
    for row in found:
        print(threads, f"{height} x {width}", batch, *row, flush=True)
    base = found[0][2]
    return [
        [
            threads,
            f"{height} x {width}",
            batch,
            name,
            size / 1e6,
            1e6 * seconds,
            base / seconds,
            size / seconds / 1e9,
            e,
        ]
        for name, size, seconds, e in found
    ]


def build_again(build: Callable[[], Built], made: "Built") -> Callable[[Tensor], Tensor]:
    """The same product from another place in memory."""
    assert made is not None
    if isinstance(made[0], torch.nn.Module):
        return copy.deepcopy(made[0])
    again = build()
    assert again is not None
    return again[0]


def candidates(weight: Tensor, x: Tensor) -> Iterator[tuple[str, float, Callable[[], Built]]]:
    """Name, bytes of the weights, and what makes a product and the matrix that it multiplies by."""
    count = weight.numel()

    def dense(dtype: torch.dtype) -> Built:
        own = weight.to(dtype)
        return (lambda x: F.linear(x.to(dtype), own)), own.float()

    yield FLOATS, 4 * count, lambda: dense(torch.float32)
    yield HALVES, 2 * count, lambda: dense(torch.bfloat16)
    yield DYNAMIC, count, lambda: dynamic(weight)
    for bits in (4, 2, 8):
        yield f"ONNX Runtime, {bits} bits, groups of {GROUP}", count * bits / 8, lambda bits=bits: onnx(weight, bits)
    for name, term in terms(weight):
        for size, label in ((2, "16-bit inputs"), (1, "8-bit inputs")):
            bytes_of = sum(v.numel() * v.element_size() for v in term(size).buffers())
            yield f"waterfill, {name}, {label}", bytes_of, lambda term=term, size=size: own(term(size))


def own(term: Term) -> Built:
    return term, term.restored()


def terms(weight: Tensor) -> Iterator[tuple[str, Callable[[int], Term]]]:
    """Packed matrices: codes of each width, a sum of three, and sparse ones."""
    rows, cols = weight.shape
    spread = float(weight.std())

    def coded(bits: int) -> Codes:
        step = spread * {2: 1.0, 3: 0.6, 4: 0.33, 5: 0.18, 6: 0.1, 8: 0.03}[bits]
        codes = (weight / step).round().clamp(-(1 << bits - 1), (1 << bits - 1) - 1).to(torch.int8)
        return Codes(codes, torch.full((rows, 1), step), columns=torch.ones(cols))

    def few(share: float) -> Entries:
        return Entries(weight * (torch.rand(rows, cols) < share))

    for bits in WIDTHS:
        yield f"{bits} bits", lambda size, bits=bits: term_of(coded(bits), size)
    left, right = torch.randint(-8, 8, (rows, RANK)), torch.randint(-8, 8, (RANK, cols))
    thin = Chain(Codes(left, torch.full((rows, 1), 0.01)), Codes(right, torch.full((RANK, 1), 0.01)))
    yield "4 bits + rank 32 + 1 % sparse", lambda size: term_of(Sum((coded(4), thin, few(KEPT))), size)
    yield "90 % zeros", lambda size: term_of(few(SPARSE), size)


def dynamic(weight: Tensor) -> Built:
    """torch's linear layer with 8-bit weights and 8-bit inputs."""
    layer = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    layer[0].weight.data = weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear}, torch.qint8)
    return made, weight


def onnx(weight: Tensor, bits: int) -> Built:
    """ONNX Runtime's `MatMulNBits` at accuracy level 4 (inputs as 8-bit integers); None where it is not installed."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    rows, cols = weight.shape
    blocks = weight.reshape(rows, -1, GROUP)
    top = (1 << bits - 1) - 1
    scales = blocks.abs().amax(2) / max(top, 1)
    codes = (blocks / scales[..., None]).round().clamp(-(1 << bits - 1), top)
    stored = (codes + (1 << bits - 1)).to(torch.uint8).reshape(rows, -1, GROUP, 1).numpy()
    fields = np.unpackbits(stored, axis=3, bitorder="little")[..., :bits].reshape(rows, stored.shape[1], -1)
    packed = np.packbits(fields, axis=2, bitorder="little")
    arrays = {"B": packed, "scales": scales.numpy().reshape(rows, -1)}
    node = helper.make_node(
        "MatMulNBits", ["A", "B", "scales"], ["Y"], domain="com.microsoft", K=cols, N=rows, bits=bits,
        block_size=GROUP, accuracy_level=4,
    )  # fmt: skip
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n]) for name, n in (("A", cols), ("Y", rows))
    ]
    values = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph([node], "product", shapes[:1], shapes[1:], values)
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"A": x.numpy()})[0])

    return run, (codes * scales[..., None]).reshape(rows, cols)


@torch.inference_mode()
def through(actions: list[Callable[[Tensor], Tensor]], x: Tensor) -> None:
    """A product from each place in memory."""
    for action in actions:
        action(x)


def claims(rows: list[list[Any]]) -> list[list[Any]]:
    """The bars with one thread: of one input, and of more beside what else takes 8-bit inputs or halves the floats."""
    found = {(row[1], row[2], row[3]): row for row in rows if row[0] == 1}
    made = []
    for shape, batch in dict.fromkeys(key[:2] for key in found):
        at = {name: row for (own, count, name), row in found.items() if (own, count) == (shape, batch)}
        made += of_one(shape, at) if batch == 1 else of_more(f"{shape}, {batch} inputs", at)
    return made


def of_one(shape: str, at: dict[str, list[Any]]) -> list[list[Any]]:
    """The bars of one input."""
    made = []
    bars = {"4 bits": 6.0, "2 bits": 9.0, "3 bits": 7.0, "8 bits": 3.5, "90 % zeros": 5.0}
    for name, bar in bars.items():
        row = at.get(ours(name))
        if row:
            made.append(claim(f"{shape}, {name}: times as fast as float32", row[6], bar, ".2f"))
            if name != "90 % zeros" and READ in at:
                made.append(claim(f"{shape}, {name}: of the speed of memory", row[7] / at[READ][7], SHARE, ".2f"))
    alone, whole = at.get(ours("4 bits")), at.get(ours("4 bits + rank 32 + 1 % sparse"))
    if alone and whole:
        what = f"{shape}, 4 bits + rank 32 + 1 % sparse over 4 bits alone: time"
        made.append(claim(what, whole[5] / alone[5], 1.35, ".2f", at_most=True))
    other = at.get(f"ONNX Runtime, 4 bits, groups of {GROUP}")
    if alone and other:
        made.append(claim(f"{shape}, 4 bits: times as fast as ONNX Runtime", other[5] / alone[5], 1.0, ".2f"))
    return made


def of_more(what: str, at: dict[str, list[Any]]) -> list[list[Any]]:
    """The bars of a batch: 4 bits as fast as what PyTorch has."""
    own = at.get(ours("4 bits"))
    others = [name for name in (DYNAMIC, HALVES) if name in at]
    return [
        claim(f"{what}, 4 bits: times as fast as {name}", at[name][5] / own[5], 1.0, ".2f") for name in others if own
    ]


def ours(name: str) -> str:
    return f"waterfill, {name}, 8-bit inputs"


if __name__ == "__main__":
    main()
