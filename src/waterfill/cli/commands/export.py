"""`waterfill export`: a compressed network in the format of another tool."""

import argparse
import os
from typing import TYPE_CHECKING

from waterfill.cli.arguments import existing
from waterfill.cli.exit_codes import UsageError
from waterfill.report.listing import any_numbers, common_name
from waterfill.report.text import Column, bytes_text, say, say_json, screen, table

if TYPE_CHECKING:
    from waterfill.export import Exported, Network, Row

EXAMPLES = """examples:
  waterfill export net.wf --to onnx --network nets:build --data nets:inputs -o net.onnx
  waterfill export net.wf --to openvino --network nets:build --data nets:inputs -o net.xml
  waterfill export SmolLM2-4bit --to gguf -o smollm2.gguf
  waterfill export SmolLM2-4bit --to compressed-tensors -o SmolLM2-for-vllm
  waterfill export SmolLM2-4bit --to safetensors --dtype bfloat16 -o SmolLM2-dense

Integers leave as they are; docs/exports.md says which recipe goes where. What a format cannot hold is refused by name,
or rounded once more with --requantize, and the loss of that is printed."""
_FORMATS = ("safetensors", "onnx", "openvino", "compressed-tensors", "gguf")
_NEED_NETWORK = ("onnx", "openvino")
_MOST = 40  # rows up to which every tensor has its own
_COLUMNS = (
    Column("tensor", text=True, least=32),
    Column("times"),
    Column("bytes"),
    Column("loss"),
    Column("form", text=True),
    Column("why", text=True),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `export`."""
    parser.add_argument("file", metavar="FILE.wf", help="or the compressed folder of a transformers model")
    parser.add_argument("--to", choices=_FORMATS, required=True, help="the format")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file or the folder to write")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network (ONNX, OpenVINO)")
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", help="its inputs, in batches; the first is traced")
    parser.add_argument("--requantize", type=int, metavar="B", help="round what the format lacks to B bits once more")
    parser.add_argument("--group", type=int, default=32, metavar="N", help="columns a scale then (default: 32)")
    parser.add_argument(
        "--activations",
        type=int,
        choices=(8,),
        help="round inputs of convolutions and LSTM too (ONNX), by those of --data",
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of dense tensors in a folder")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--all", action="store_true", help="a row for every tensor, however many there are")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Write OUT and print what became of every tensor. Raises the errors of `waterfill.export.export`."""
    existing(args.file)
    if os.path.lexists(args.output) and not args.force:
        from waterfill.errors import OutputExists

        raise OutputExists(f"{args.output} exists; choose another output, or ask to overwrite it (--force)")
    from waterfill.export import How, export

    how = How(args.force, args.requantize, args.group, args.dtype, activations=args.activations)
    made = export(args.file, args.output, args.to, _network(args), how)
    if args.json:
        say_json({"file": args.file} | made.as_json())
        return
    _say(made, args.all)


def _network(args: argparse.Namespace) -> "Network | None":
    """The network of --network and the batches of --data, where the format needs them. Raises UsageError."""
    if args.to not in _NEED_NETWORK:
        if args.network or args.data:
            raise UsageError(f"--to {args.to} holds weights alone: leave --network and --data out")
        return None
    if not args.data:
        raise UsageError(f"--to {args.to} holds what the network computes: give --network and --data, its inputs")
    from waterfill.cli.network import network_and_batches
    from waterfill.export import Network

    return Network(*network_and_batches(args.network, args.data))


def _say(made: "Exported", everything: bool) -> None:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in made.rows:
        name = row.name if everything or len(made.rows) <= _MOST else any_numbers(row.name)
        groups.setdefault((name, row.form, row.why), []).append(row)
    rows = [_cells(group) for group in groups.values()]
    say(table(_COLUMNS, rows, screen()))
    if len(rows) < len(made.rows):
        say("tensors whose names differ in numbers only share a row (loss: the largest); --all shows each")
    say()
    said = f"{made.path}: {bytes_text(made.size)}, {made.format}"
    if made.loss:
        said += f"; rounding again lost up to {made.loss:.2%} of a tensor"
    say(said)
    if made.difference is not None:
        say(f"its outputs differ from those in PyTorch by {made.difference:.2g}, relative to them")


def _cells(group: "list[Row]") -> tuple[str, ...]:
    """The row of tensors that are held alike."""
    times, loss = len(group), max(row.loss for row in group)
    size = bytes_text(sum(row.bytes for row in group))
    counted = (f"{times}" if times > 1 else "", size, f"{loss:.2%}" if loss else "")
    return common_name([row.name for row in group]), *counted, group[0].form, group[0].why
