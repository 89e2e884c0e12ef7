"""The arguments that say where `compress` has its work done."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from waterfill.cli.exit_codes import UsageError

if TYPE_CHECKING:
    from waterfill.compression.engine.engine import Engine


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The arguments of an engine."""
    group = parser.add_argument_group("on many machines")
    group.add_argument("--engine", choices=("dask",), help="what has the weights worked on (default: threads, here)")
    group.add_argument("--scheduler", metavar="ADDRESS", help="of dask, such as tcp://10.0.0.1:8786")


def check_engine(args: argparse.Namespace) -> None:
    """Raise UsageError where the arguments of an engine do not belong together, or to the others."""
    if bool(args.engine) != bool(args.scheduler):
        raise UsageError("--engine dask has its work done by a --scheduler ADDRESS: give both")
    if args.engine and (args.data or args.text):
        raise UsageError("--engine is for compression without inputs: leave out --data and --text")
    if args.engine and args.threads:
        raise UsageError("--threads are those of this machine; with --engine each worker has its own")


@contextmanager
def engine_of(args: argparse.Namespace) -> "Iterator[Engine | None]":
    """A block with the engine that was asked for; None for the threads of this process. Raises EngineError."""
    if not args.engine:
        yield None
        return
    from waterfill.compression.engine.dask import Dask

    with Dask(args.scheduler) as engine:
        yield engine
