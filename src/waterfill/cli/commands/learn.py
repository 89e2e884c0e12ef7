"""`waterfill learn`: a network compressed and trained in compressed form."""

import argparse
import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from waterfill.cli.arguments import add_common, budget_of, default_output, existing, writable
from waterfill.cli.exit_codes import UsageError
from waterfill.cli.network import counted, labelled, network_and_batches, with_weights
from waterfill.report.listing import Listing, items_of
from waterfill.report.text import say, say_json, seconds_text
from waterfill.storage.atomic import claimed

EXAMPLES = """examples:
  waterfill learn model.safetensors --ratio 24 --network nets:resnet20 --data loaders:images --epochs 5
  waterfill learn model.safetensors --bits 1 --recipe "Codebook(levels=2) + Prune(keep=0.01)" --method lc \\
      --network nets:resnet20 --data loaders:images

No labels are needed: the network learns to say what it said before. Interrupted or killed, the same command goes on
from its last snapshot. On several processes: torchrun --nproc-per-node 2 -m waterfill learn ..."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `learn`."""
    add_common(parser)
    parser.add_argument("-o", "--output", metavar="OUT", help="the file to write (default: beside MODEL, named .wf)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--data", metavar="MODULE:FUNCTION|FILE", required=True, help="batches of inputs, many of them")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="what builds the network, its weights apart")
    parser.add_argument("--labels", action="store_true", help="batches are (inputs, labels): learn to classify")
    parser.add_argument("--epochs", type=float, default=3.0, metavar="N", help="passes through the data (default: 3)")
    parser.add_argument("--rate", type=float, default=None, metavar="R", help="the learning rate at first")
    parser.add_argument(
        "--method", choices=("straight-through", "lc"), default="straight-through", help="how codes are learned"
    )
    parser.add_argument(
        "--features", type=float, default=0.0, metavar="W", help="how much counts what is seen inside (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of batches")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 where that is safe")


def run(args: argparse.Namespace) -> None:
    """Write OUT and print a row for every tensor. Raises the errors of `waterfill.learn.run`."""
    output = args.output or default_output(existing(args.model))
    writable(output, args.force, args.model)
    if args.lossless:
        raise UsageError("--lossless keeps every bit: there is nothing to learn")
    began = time.monotonic()
    with _processes() as rank:
        listing = _learned(args, output, rank)
    if rank != 0:
        return
    seconds = time.monotonic() - began
    if args.json:
        say_json({"file": output, "seconds": seconds} | listing.as_json())
        return
    say(listing.text(args.all))
    say()
    say(f"{output}: {listing.totals()}")
    say(f"took {seconds_text(seconds)}")


@contextmanager
def _processes() -> Iterator[int]:
    """A block in which the processes that torchrun has started work together; the number of this one."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank()
        dist.barrier()  # who leaves while others still talk is aborted by threads of gloo
    finally:
        dist.destroy_process_group()
        gc.collect()  # what still knows the group goes now, not when the interpreter ends, which aborts as well


def _learned(args: argparse.Namespace, output: str, rank: int) -> Listing:
    from waterfill import Budget, Options, learn
    from waterfill.cli.progress import Meter

    network, batches = network_and_batches(args.network, args.data, targets=args.labels)
    network = with_weights(network, existing(args.model))
    given: dict[str, Any] = {name: value for name, value in budget_of(args).items() if name != "lossless"}
    names = ("epochs", "rate", "method", "features", "seed", "bfloat16")
    training = learn.Training(**{name: getattr(args, name) for name in names})
    work = Path(f"{output}.work")
    try:
        with claimed(output) if rank == 0 else nullcontext(), Meter(args.quiet or rank != 0) as meter:
            made = learn.run(
                network,
                counted(batches),
                budget=Budget(**given),
                spec=args.recipe,
                training=training,
                options=Options(progress=meter, threads=args.threads, work=work),
                save=lambda made: made.save(output, force=args.force),
                **(labelled() if args.labels else {}),
            )
    except KeyboardInterrupt as error:
        goes_on = f"; the same command goes on from {work}" if work.is_dir() else ""
        raise KeyboardInterrupt(f"interrupted{goes_on}") from error
    return Listing(items_of(made.table()), made.aliases, made.notes, made.size)
