"""`waterfill verify`: every checksum; with --deep every part decoded; with --against the weights compared."""

import argparse
from typing import TYPE_CHECKING

from waterfill.cli.arguments import existing
from waterfill.errors import CorruptFile, VerifyError
from waterfill.report.listing import Listing, read_listing
from waterfill.report.text import say, say_json
from waterfill.storage import FileReader

if TYPE_CHECKING:
    from waterfill.report.differences import Comparison

EXAMPLES = """examples:
  waterfill verify model.wf                                every checksum: was the file damaged?
  waterfill verify model.wf --deep                         and does every tensor decode?
  waterfill verify model.wf --against model.safetensors    and how far is each from the original?"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `verify`."""
    parser.add_argument("file", metavar="FILE.wf")
    parser.add_argument("--deep", action="store_true", help="decode every tensor as well")
    parser.add_argument("--against", metavar="MODEL", help="compare with this .safetensors file or folder")
    parser.add_argument("--all", action="store_true", help="with --against: a row for every tensor")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Check and print the result. Raises VerifyError for damage and differences, NewerFormat."""
    try:
        with FileReader(args.file) as src:
            src.verify()
            listing = read_listing(src)
            compared = _decoded(args, src, listing)
    except CorruptFile as damage:
        raise VerifyError(str(damage)) from damage
    depth = "every tensor decodes" if args.deep or args.against else "every checksum matches"
    if args.json:
        result = {"file": args.file, "ok": True, "bytes": listing.size, "tensors": len(listing.items)}
        say_json(result | ({} if compared is None else compared.as_json()))
        return
    if compared is not None:
        say(compared.text(args.all))
    say(f"{args.file}: ok; {depth} ({listing.size} bytes, {len(listing.items)} tensors)")


def _decoded(args: argparse.Namespace, src: FileReader, listing: Listing) -> "Comparison | None":
    if not (args.deep or args.against):
        return None
    from waterfill.model.lazy import CompressedTensors
    from waterfill.report.differences import compare  # imports torch

    tensors = CompressedTensors(src)
    if args.against:
        return compare(tensors, listing, existing(args.against))
    for name in src.names:
        tensors.entry(name)
    return None
