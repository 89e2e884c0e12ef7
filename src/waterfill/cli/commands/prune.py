"""`waterfill prune`: a network without the channels, neurons and heads that it needs least."""

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from waterfill.cli.arguments import existing, size_of, writable
from waterfill.cli.network import counted, network_and_batches, with_weights
from waterfill.report.text import bytes_text, say, say_json, seconds_text
from waterfill.storage.atomic import claimed

if TYPE_CHECKING:
    from waterfill.channels import Pruned

EXAMPLES = """examples:
  waterfill prune model.safetensors --macs 0.5 --network nets:resnet56 --data loaders:images -o half.wf
  waterfill prune model.safetensors --speedup 2 --batch 64 --network nets:resnet56 --data loaders:images -o quick.wf
  waterfill prune model.safetensors --macs 0.5 --bits 4 --network nets:resnet56 --data loaders:images -o small.wf

Data are inputs without labels. OUT holds the smaller network, every bit of it unless a budget is given; it goes into a
new network of the same class, whose layers get its sizes: waterfill.load(OUT).install(Net()). A share of
multiplications is no speedup: the times that are measured stand beside it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prune`."""
    parser.add_argument("model", metavar="MODEL", help="the trained weights: .safetensors or .wf")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument(
        "--data", metavar="MODULE:FUNCTION|FILE", required=True, help="a few hundred inputs, in batches"
    )
    budget = parser.add_argument_group("what may be left, one of").add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs", type=float, metavar="SHARE", help="of the multiplications, such as 0.5")
    budget.add_argument("--speedup", type=float, metavar="TIMES", help="as fast as before, measured here")
    budget.add_argument("--keep", type=float, metavar="SHARE", help="of the channels that can go")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="inputs at once that are timed (default: 1)")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="in which channels go (default: 4)")
    parser.add_argument("--multiple", type=int, metavar="N", help="of which channels stay (default: 8 for a speedup)")
    parser.add_argument(
        "--blocks",
        action=argparse.BooleanOptionalAction,
        help="whether whole blocks may go (default: where a speedup is wanted)",
    )
    parser.add_argument("--fold", action="store_true", help="batch norms go into the layers before them: fewer calls")
    size = parser.add_argument_group("size of the file, at most one of").add_mutually_exclusive_group()
    size.add_argument("--bits", type=float, metavar="B", help="bits per weight (default: every bit stays)")
    size.add_argument("--size", type=size_of, metavar="S", help="of the file: 3MB, 500kB, 54000")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the file to write")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Write OUT and print what went. Raises the errors of `waterfill.prune_channels` and `waterfill.compress`."""
    writable(args.output, args.force, args.model)
    network, batches = network_and_batches(args.network, args.data)
    network = with_weights(network, existing(args.model))
    began = time.monotonic()

    import waterfill
    from waterfill import Options
    from waterfill.channels import Pruning
    from waterfill.cli.progress import Meter

    inputs = counted(batches)
    with claimed(args.output), Meter(args.quiet) as meter:
        own = {name: getattr(args, name) for name in ("rounds", "multiple", "batch", "blocks", "fold")}
        how = Pruning(**own, progress=meter)
        shares = {name: getattr(args, name) for name in ("macs", "speedup", "keep")}
        pruned = waterfill.prune_channels(network, inputs, **shares, how=how)
        if args.bits is not None or args.size is not None:
            budget: dict[str, Any] = {"bits": args.bits, "size": args.size}
            small = waterfill.compress(pruned.model, inputs, **budget, options=Options(progress=meter))
        else:
            small = waterfill.compress(pruned.model, lossless=True, options=Options(progress=meter))
        written = small.save(args.output, force=args.force)
    seconds = time.monotonic() - began
    if args.json:
        say_json({"file": args.output, "bytes": written, "seconds": seconds} | as_json(pruned))
        return
    say(pruned.text())
    say(f"{args.output}: {bytes_text(written)}")
    say(f"took {seconds_text(seconds)}")


def as_json(pruned: "Pruned") -> dict[str, Any]:
    """What is known of a pruned network, as JSON has it."""
    return {
        "macs": pruned.macs,
        "macs_share": pruned.macs_share,
        "speedup": pruned.speedup,
        "latency": [asdict(row) for row in pruned.latency],
        "sizes": pruned.sizes,
        "blocks": pruned.blocks,
        "table": pruned.table(),
    }
