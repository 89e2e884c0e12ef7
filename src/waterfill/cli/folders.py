"""What `compress` and `evaluate` do with the folder of a transformers model."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from waterfill.cli.arguments import DEFAULT_RECIPE, budget_of, existing, recipe_said
from waterfill.cli.engines import engine_of
from waterfill.cli.exit_codes import UsageError
from waterfill.errors import BadInput
from waterfill.report.listing import Listing, items_of
from waterfill.report.text import say, say_json

if TYPE_CHECKING:
    from torch import nn

    from waterfill.hf import Windows

_NO_FOLDER = ("data", "network", "max_drop", "held_out", "cache")


def add_text(parser: argparse._ActionsContainer, default: str) -> None:
    """The arguments for a text and its windows."""
    parser.add_argument("--text", metavar="FILE", help="plain text, for the folder of a transformers language model")
    parser.add_argument("--tokens", metavar="NxT", help=f"N windows of the text of T tokens each (default: {default})")


def is_folder_wanted(args: argparse.Namespace) -> bool:
    """Whether OUT is to be a folder: MODEL is one, and OUT is named and is no .wf file. Raises UsageError."""
    named = bool(args.output) and not args.output.endswith(".wf")
    if args.text and not named:
        raise UsageError("--text is for the folder of a transformers model: name the folder to write with -o OUT")
    if args.tokens and not args.text:
        raise UsageError("--tokens goes with --text")
    return bool(args.text) or (named and os.path.isdir(args.model))


def compress_to_folder(args: argparse.Namespace) -> Listing:
    """Compress MODEL into the folder OUT. Raises UsageError, and as `waterfill.hf.compress_folder`."""
    for name in _NO_FOLDER:
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is not for folders; inputs of a folder's model are a --text")
    if args.blocks and not args.text:
        raise UsageError("--blocks says how inputs go through a network: it goes with --text")
    if args.text and args.lossless:
        raise UsageError("--lossless keeps every bit and needs no --text")
    existing(args.model)
    if args.text:
        existing(args.text)
    from waterfill.hf.staging import check_folder_target

    check_folder_target(args.output, args.force, args.model)

    from waterfill import Options
    from waterfill.calibration.calibrate import MEMORY
    from waterfill.cli.progress import Meter
    from waterfill.compression.options import AUTO_BLOCKS
    from waterfill.hf import compress_folder

    windows = windows_of(args.tokens, 128)
    with engine_of(args) as engine, Meter(args.quiet) as meter:
        how: dict[str, Any] = {"memory": args.memory or MEMORY, "runs": args.runs, "blocks": args.blocks or AUTO_BLOCKS}
        options = Options(force=args.force, threads=args.threads, progress=meter, **how)
        given = {"spec": args.recipe, "ignore": args.ignore, "engine": engine} | budget_of(args)
        made = compress_folder(args.model, args.output, **given, text=args.text, windows=windows, options=options)
    recipe = recipe_said(args, "" if args.text else DEFAULT_RECIPE)
    notes = {"recipe": recipe, "original": made.original}
    return Listing(items_of(made.rows), made.aliases, notes, made.size)


def evaluate_on_text(args: argparse.Namespace) -> None:
    """Measure the model of a folder on a text, in float32, and print. Raises UsageError, BadInput."""
    if args.data or args.network or args.speed or args.layers or args.bytes:
        raise UsageError("--text measures a folder's language model; --data and what goes with it measure all others")
    for path in (args.file, args.text, args.reference):
        if path:
            existing(path)
    if args.packed and not os.path.isdir(args.file):
        raise UsageError(f"--packed runs the model of a compressed folder, and {args.file} is none")
    from waterfill.hf import evaluate

    windows = windows_of(args.tokens, 64)
    reference = _model(args.reference) if args.reference else None
    scores = evaluate(_model(args.file, args.packed), args.text, args.file, windows, reference=reference)
    if args.json:
        said = {"file": args.file, "reference": args.reference, "text": args.text, "packed": args.packed}
        say_json(said | scores.as_json())
        return
    say(scores.text())


def windows_of(text: str | None, count: int) -> "Windows":
    """The windows of `--tokens`. Raises UsageError."""
    from waterfill.hf import Windows

    try:
        return Windows.parse(text) if text else Windows(count)
    except BadInput as error:
        raise UsageError(f"--tokens: {error}") from error


def _model(folder: str, packed: bool = False) -> "nn.Module":
    """The model of a folder, compressed or not. Raises BadInput."""
    import torch

    from waterfill.hf import is_compressed, load
    from waterfill.hf.original import original_model

    if packed or is_compressed(folder):
        options: dict[str, Any] = {"packed": packed, "dtype": torch.float32}
        return load(folder, **options)
    return original_model(folder)
