"""Arguments that `compress` and `plan` share: the model, the budget, the recipe, and how to run."""

import argparse
import errno
import math
import os
from pathlib import Path
from typing import Any

from waterfill.cli.exit_codes import UsageError
from waterfill.errors import BadInput
from waterfill.report.text import parse_size
from waterfill.storage.paths import check_target

DEFAULT_RECIPE = "Quantize()"


METRICS = ("accuracy", "top5", "agreement", "perplexity", "nats", "divergence")


def add_common(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """The arguments that `compress` and `plan` share; returns the group of the budgets."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file, or the folder or index of a sharded one")
    budget = parser.add_argument_group("budget, at most one of").add_mutually_exclusive_group()
    budget.add_argument("--bits", type=_positive, metavar="B", help="bits per weight of the whole file (default: 4)")
    budget.add_argument("--size", type=size_of, metavar="S", help="of the file: 3MB, 3MiB, 500kB, 54000")
    budget.add_argument("--ratio", type=_positive, metavar="R", help="how many times smaller than the original tensors")
    budget.add_argument("--price", type=_positive, metavar="P", help="the water level itself, nats per bit")
    budget.add_argument("--lossless", action="store_true", help="every bit stays, in as few bytes as that takes")
    parser.add_argument(
        "--recipe",
        metavar="TEXT",
        help=f'what to look for, such as "Quantize() + Prune() | LowRank()" (default: {DEFAULT_RECIPE}, with inputs '
        'automatic); by pattern of names: "re:.*mlp.*: Quantize(states=64); *: Quantize()", the first that matches',
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--runs",
        choices=("packed",),
        help="how the network is to run: of packed weights the budget counts what they take in memory too",
    )
    how.add_argument(
        "--format",
        dest="runs",
        choices=("onnx", "openvino", "gguf", "compressed-tensors"),
        help="the format to export to afterwards: each weight has bits that it holds, and the budget is of its file",
    )
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="tensors at a time (default: one a core, up to 4)"
    )
    parser.add_argument("--all", action="store_true", help="a row for every tensor, however many there are")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return budget


def add_ignore(parser: argparse.ArgumentParser) -> None:
    """The argument for tensors that are left as they are."""
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="keep bit for bit what is named so, a tensor or a module: lm_head, *.gate, re:.*norm.*; may be repeated",
    )


def add_metric(target: "argparse.ArgumentParser | argparse._ArgumentGroup", default: str, counts: str) -> None:
    """The option that says what quality is."""
    needs = "which needs no targets" if default == "divergence" else "agreement and divergence need no targets"
    target.add_argument("--metric", choices=METRICS, default=default, help=f"{counts} (default: {default}; {needs})")


def recipe_said(args: argparse.Namespace, default: str = "") -> str:
    """The recipe of a file in words. default: for what is neither ignored nor in a recipe; empty for the automatic."""
    from waterfill.assignment import LOSSLESS, Assignment
    from waterfill.parts import to_run

    if args.lossless:
        return LOSSLESS
    recipe = Assignment.of(args.recipe or default or None, args.ignore)
    return (recipe.mapped(lambda spec: to_run(spec, args.runs)) if args.runs else recipe).text or "automatic"


def budget_of(args: argparse.Namespace) -> dict[str, Any]:
    """The budget that was asked for, as `compress_file` and `plan_file` take it."""
    return {"bits": args.bits, "size": args.size, "ratio": args.ratio, "price": args.price, "lossless": args.lossless}


def existing(path: str) -> str:
    """`path`. Raises FileNotFoundError if nothing is there."""
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return path


def writable(path: str, force: bool, source: str | None = None) -> None:
    """Say what is in the way of an output before the work begins. source: what is read, which no output replaces.

    Raises OutputExists, UsageError, OSError.
    """
    if source is not None and os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
        raise UsageError(f"{path} is what is read, and would be lost: give another output")
    try:
        check_target(path, force)
    except BadInput as error:
        raise UsageError(str(error)) from error


def default_output(model: str) -> str:
    """MODEL.wf beside the model: for a folder or the index in it, beside the folder."""
    path = Path(model)
    if path.suffix == ".safetensors":
        return str(path.with_suffix(".wf"))
    folder = (path.parent if path.suffix == ".json" else path).resolve()
    return str(folder.with_name(f"{folder.name}.wf"))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def numbers_in(text: str) -> list[float]:
    """Numbers separated by commas; NaN for what is none."""

    def number(piece: str) -> float:
        try:
            return float(piece)
        except ValueError:
            return math.nan

    return [number(piece) for piece in text.split(",")]


def size_of(text: str) -> int:
    """Bytes as people write them, such as 3MB. Raises ArgumentTypeError."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive size")
    return size


def share_of(text: str) -> float:
    """A share of at least a half, such as 95% or 0.95. Raises ArgumentTypeError."""
    try:
        share = float(text.rstrip().removesuffix("%")) / (100 if "%" in text else 1)
    except ValueError:
        share = 0.0
    if not 0.5 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 50% to below 100%")
    return share


def _threads(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of threads")
    return value
