"""`waterfill demo`: a network trained, compressed to several sizes, written, read back, and measured."""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waterfill.report.text import Column, complain, count_text, say, say_json, screen, seconds_text, table
from waterfill.storage.work_directory import temporary_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from waterfill.cli.commands.demo.digits import Digits

EXAMPLES = """example:
  waterfill demo --bits 4 2 1.5 1"""
_BUDGETS = (8.0, 4.0, 3.0, 2.0, 1.5)
_WIDTHS = range(2, 17)  # bits of plain rounding to choose from


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `demo`."""
    parser.add_argument("--bits", type=float, nargs="+", default=_BUDGETS, metavar="B", help="budgets, bits per weight")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class Row:
    """A network by its bytes: what it is, bits and bytes, correct answers, and the error of its logits relative to
    those of the untouched network."""

    what: str
    bytes: int
    bits: float
    ratio: float
    accuracy: float
    error: float


@dataclass(frozen=True)
class Bench:
    """The reference of every compressed network: the original, the test digits, its weights and bytes."""

    model: "nn.Module"
    digits: "Digits"
    logits: "Tensor"
    weights: int
    original: int

    def measure(self, what: str, size: int, state: "dict[str, Tensor]") -> Row:
        """A row for a network of the same class with these tensors, in a file of `size` bytes."""
        from waterfill.cli.commands.demo.digits import network, outputs

        model = network()
        model.load_state_dict(state)
        images, labels = self.digits.test
        logits = outputs(model.eval(), images)
        accuracy = float((logits.argmax(1) == labels).float().mean())
        error = float((logits - self.logits).norm() / self.logits.norm())
        return Row(what, size, 8 * size / self.weights, self.original / size, accuracy, error)


def run(args: argparse.Namespace) -> None:
    """Train, compress, measure, print. Raises UsageError without scikit-learn."""
    began = time.monotonic()
    bench = _bench(args.quiet)
    rows = [bench.measure("float32", bench.original, bench.model.state_dict())]
    with temporary_folder() as folder:
        for bits in args.bits:
            rows += _compressed(bench, bits, folder / f"digits-{bits:g}.wf")
    if args.json:
        say_json({"weights": bench.weights, "rows": [asdict(row) for row in rows]})
        return
    say(_text(rows))
    say()
    say("waterfill: a .wf file, these are its bytes, read back and put into the network")
    say("rounded:   to nearest, packed, a scale for each 64, by the fewest bits that take no fewer bytes")
    say(f"correct:   of {len(bench.digits.test[1])} digits not trained on; logits off: how far from those of float32")
    say(f"took {seconds_text(time.monotonic() - began)}")


def _bench(quiet: bool) -> Bench:
    import torch

    from waterfill.cli.commands.demo.digits import load_digits, outputs, trained

    digits = load_digits()
    torch.set_num_threads(1)  # so small a network gains nothing from more, and loses much where cores are shared
    if not quiet:
        count = len(digits.train[1])
        complain(f"training a small convolutional network on {count} handwritten digits ...")
    model = trained(digits)
    state = model.state_dict()
    weights = sum(p.numel() for p in model.parameters())
    original = sum(t.numel() * t.element_size() for t in state.values())
    if not quiet:
        complain(f"trained: {count_text(weights)} weights; testing on {len(digits.test[1])} digits it has not seen")
    return Bench(model, digits, outputs(model, digits.test[0]), weights, original)


def _compressed(bench: Bench, bits: float, path: Path) -> list[Row]:
    """The network in a file of so many bits per weight, and plainly rounded to no fewer bytes."""
    import waterfill
    from waterfill.cli.commands.demo.digits import network, plainly_rounded

    quiet = waterfill.Options(progress=False)
    size = waterfill.compress(bench.model, bits=bits, options=quiet).save(path)
    restored = waterfill.load(path).install(network()).state_dict()
    row = bench.measure(f"waterfill, {bits:g} bits", size, restored)
    state: dict[str, Any] = dict(bench.model.state_dict())
    choices = ((*plainly_rounded(state, width), width) for width in _WIDTHS)
    for rounded, used, width in choices:
        if used >= size:
            return [row, bench.measure(f"  rounded, {width} bits", used, rounded)]
    return [row]


def _text(rows: list[Row]) -> str:
    titles = (Column("network", text=True), *map(Column, ("bytes", "bits/weight", "smaller", "correct", "logits off")))
    return table(titles, map(_cells, rows), screen())


def _cells(row: Row) -> list[str]:
    off = f"{100 * row.error:.2f} %" if row.error else "-"
    return [row.what, f"{row.bytes}", f"{row.bits:.2f}", f"{row.ratio:.1f}x", f"{100 * row.accuracy:.2f} %", off]
