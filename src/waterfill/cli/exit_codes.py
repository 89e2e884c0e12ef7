"""Exit codes, and how an exception becomes one with a message of a line or two."""

import errno
import signal
from enum import IntEnum

from waterfill import errors


class Exit(IntEnum):
    """Exit codes; documented in `waterfill --help` and never renumbered."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    OUTPUT_EXISTS = 3
    CORRUPT_INPUT = 4
    VERIFY_FAILED = 5
    DISK_FULL = 6
    OUT_OF_MEMORY = 7
    BUDGET_NOT_MET = 8
    PLAN_MISMATCH = 9
    NO_MACHINES = 10
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class UsageError(Exception):
    """Arguments that cannot be meant as they are."""


class Ended(KeyboardInterrupt):
    """A signal has ended the process: as Ctrl-C does, so that temporary files and folders go."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.code = Exit(128 + number)


_CODES: tuple[tuple[type[BaseException], Exit], ...] = (
    (UsageError, Exit.USAGE),
    (errors.VerifyError, Exit.VERIFY_FAILED),
    (errors.OutputExists, Exit.OUTPUT_EXISTS),
    (errors.CorruptFile, Exit.CORRUPT_INPUT),
    (errors.NewerFormat, Exit.CORRUPT_INPUT),
    (errors.BadInput, Exit.CORRUPT_INPUT),
    (errors.Mismatch, Exit.CORRUPT_INPUT),
    (errors.BudgetError, Exit.BUDGET_NOT_MET),
    (errors.PlanMismatch, Exit.PLAN_MISMATCH),
    (errors.EngineError, Exit.NO_MACHINES),
    (errors.BadRecipe, Exit.USAGE),
    (errors.CannotExport, Exit.USAGE),
    (MemoryError, Exit.OUT_OF_MEMORY),
    (FileNotFoundError, Exit.USAGE),
    (IsADirectoryError, Exit.USAGE),
    (NotADirectoryError, Exit.USAGE),
    (KeyboardInterrupt, Exit.INTERRUPTED),
)
_NO_MEMORY = ("allocate memory", "out of memory")  # in messages of torch
_FULL = (errno.ENOSPC, errno.EDQUOT)


def code_of(error: BaseException) -> Exit:
    """The exit code of an exception."""
    if isinstance(error, Ended):
        return error.code
    if isinstance(error, OSError) and error.errno in _FULL:
        return Exit.DISK_FULL
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
        return Exit.OUT_OF_MEMORY
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.UNEXPECTED)


def message_of(error: BaseException) -> str:
    """The error and advice, in a line or two."""
    code = code_of(error)
    if code is Exit.DISK_FULL:
        return f"the disk is full{_at(error)}; free some space or choose another folder, and run it again"
    if code is Exit.OUT_OF_MEMORY:
        return "out of memory; use fewer threads (--threads 1), or a machine with more memory"
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError) and error.filename:
            return f"there is no {error.filename}; check the path"
        return f"{error.strerror or error}{_at(error)}"
    if code is Exit.UNEXPECTED:
        text = str(error) or "no message"
        return f"unexpected {type(error).__name__}: {text}\nrun it again with --debug for the traceback"
    return str(error) or "interrupted"


def _at(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" ({name})" if name else ""
