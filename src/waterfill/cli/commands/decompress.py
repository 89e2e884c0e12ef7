"""`waterfill decompress`: a .wf file back as .safetensors, one tensor in memory at a time."""

import argparse
import os
from pathlib import Path

from waterfill.cli.arguments import existing, writable
from waterfill.cli.exit_codes import UsageError
from waterfill.report.text import bytes_text, say, say_json
from waterfill.storage import FileReader

EXAMPLES = """example:
  waterfill decompress model.wf -o restored.safetensors --dtype bfloat16"""
_DTYPES = ("float32", "float16", "bfloat16")


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `decompress`."""
    parser.add_argument("file", metavar="FILE.wf")
    parser.add_argument("-o", "--output", metavar="OUT", help="the .safetensors file (default: beside FILE.wf)")
    parser.add_argument("--dtype", choices=_DTYPES, help="of floating-point tensors (default: that of the original)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Write OUT. Raises CorruptFile, NewerFormat, OutputExists."""
    import torch

    from waterfill import Progress
    from waterfill.cli.progress import Meter
    from waterfill.export.safetensors import SafetensorsWriter, slots_of
    from waterfill.model.install import converted
    from waterfill.model.lazy import CompressedTensors

    source = existing(args.file)
    if os.path.isdir(source):
        raise UsageError(f"{source} is a folder; give a .wf file")
    output = args.output or str(Path(source).with_suffix(".safetensors"))
    writable(output, args.force, source)
    with FileReader(source) as src:
        tensors = CompressedTensors(src)
        slots = slots_of(tensors, getattr(torch, args.dtype) if args.dtype else None)
        with SafetensorsWriter(output, slots, args.force, tensors.metadata) as out, Meter(args.quiet) as meter:
            done, entries = 0, sum(slot.bytes for slot in slots)
            for number, slot in enumerate(slots, 1):
                out.add(converted(slot.source, tensors[slot.source], slot.dtype))
                done += slot.bytes
                meter(Progress("writing", number, len(slots), done, entries))
            written = out.finish()
        size = src.size
    if args.json:
        say_json({"file": args.file, "output": output, "bytes": written, "tensors": len(slots)})
    else:
        say(f"{output}: {bytes_text(written)}, {len(slots)} tensors, from {bytes_text(size)}")
