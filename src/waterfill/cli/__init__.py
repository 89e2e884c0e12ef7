"""The command line: parse, call, print.

Each command is one module with `configure(parser)` and `run(args)`. torch is imported by those that need it, when they
run, so that help, `info` and `verify` answer at once.
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from types import FrameType

from waterfill.cli.commands import compress, decompress, evaluate, learn, plan, prune
from waterfill.cli.commands.demo import command as demo
from waterfill.cli.commands.look import compare, info, limits, report, sensitivity, verify
from waterfill.cli.exit_codes import Ended, Exit, code_of, message_of
from waterfill.report.text import ReaderGone, complain, said

_COMMANDS = {
    "compress": (compress, "write a model as a .wf file of a given size"),
    "learn": (learn, "compress a network and train it in compressed form, without labels"),
    "prune": (prune, "remove channels, neurons and heads, so that a network is faster in plain PyTorch"),
    "plan": (plan, "what compress would do: predicted sizes, errors, memory and time; writes nothing"),
    "limits": (limits, "the fewest bits at which a network can keep its answers, and how near files come"),
    "info": (info, "what a .wf file holds, tensor by tensor"),
    "verify": (verify, "check every byte of a .wf file"),
    "decompress": (decompress, "write a .wf file back as .safetensors"),
    "report": (report, "one offline page about a .wf file: every layer, where the bits went, how near the bound it is"),
    "compare": (compare, "several recipes at several sizes: a table and a plot"),
    "sensitivity": (sensitivity, "what a network loses if one weight alone has few bits"),
    "evaluate": (evaluate, "how good a file's network is on data, and how far from the original"),
    "demo": (demo, "train a small network, compress it, and measure what is lost"),
}
_EXIT_CODES = """exit codes: 0 ok, 1 unexpected, 2 usage, 3 output exists, 4 corrupt input, 5 verify failed,
6 disk full, 7 out of memory, 8 budget not met, 9 plan mismatch; 128 and its number for a signal"""


def parser() -> argparse.ArgumentParser:
    """The grammar of all commands."""
    top = argparse.ArgumentParser(
        prog="waterfill",
        description="Makes trained neural networks smaller, at the least possible loss.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"waterfill {metadata.version('waterfill')}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.configure(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. `arguments` are those of the process unless given."""
    try:
        args = parser().parse_args(arguments)
    except SystemExit as leave:  # argparse has printed help, the version or the usage error
        return int(leave.code or 0)
    _fill_streams()
    try:
        with _signals():
            args.run(args)
            said()
    except ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        if args.debug:
            complain(traceback.format_exc().rstrip())
        complain(f"waterfill: error: {message_of(error)}")
        return code_of(error)
    return Exit.OK


def _fill_streams() -> None:
    """Open what of standard input, output and error was closed: else the next file opened would take its place, and get
    what libraries write to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def _signals() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP end as Ctrl-C does; what was to be ignored (nohup) is."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names if threading.current_thread() is threading.main_thread()]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
