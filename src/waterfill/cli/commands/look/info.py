"""`waterfill info`: what a file holds; answers at once, however large the file is."""

import argparse

from waterfill.report.listing import read_listing
from waterfill.report.text import printable, say, say_json
from waterfill.storage import FileReader

EXAMPLES = """example:
  waterfill info model.wf"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `info`."""
    parser.add_argument("file", metavar="FILE.wf")
    parser.add_argument("--all", action="store_true", help="a row for every tensor, however many there are")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the content of the manifest. Raises CorruptFile, NewerFormat."""
    with FileReader(args.file) as src:
        version, listing = src.version, read_listing(src)
    if args.json:
        say_json({"file": args.file, "format": version} | listing.as_json())
        return
    recipe = printable(listing.recipe)
    say(f"{args.file}: waterfill format {version}" + (f", recipe {recipe}" if recipe else ""))
    say(listing.totals())
    for remark in filter(None, (listing.folded, listing.notes.get("budget"))):
        say(f"{remark}")
    say()
    say(listing.text(args.all))
    outside = listing.size - sum(item.bytes for item in listing.items)
    say()
    say(f"names, shapes and checksums: {outside:.0f} bytes")
