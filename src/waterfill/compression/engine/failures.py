"""Errors that happened on another machine, raised here."""

from typing import Any, NoReturn

from waterfill import errors
from waterfill.compression.engine.reference import Reference
from waterfill.errors import EngineError, WaterfillError

_KNOWN = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, WaterfillError) and kind is not EngineError
}
_GIGABYTES = 14e-9  # of memory, for each entry of a weight that is fitted


def raise_answered(error: dict[str, Any], where: Reference) -> NoReturn:
    """Raise the error in an answer: of its own class if that is ours or the system's, else EngineError.

    It names the weight and the machine. where: the weight that was worked on.
    """
    kind, message, at = error["kind"], error["message"], f"at the weight {where.name!r}, on {error['host']}"
    if kind in _KNOWN:
        raised: Exception = _KNOWN[kind](message)
        raised.add_note(at)
    elif "number" in error:
        raised = OSError(error["number"], message.partition("] ")[2].partition(": '")[0] or message, error["file"])
        raised.add_note(at)
    elif kind == "MemoryError" or "allocate memory" in message:
        raised = EngineError(
            f"out of memory {at}: it has {where.entries} entries, about {_GIGABYTES * where.entries:.1f} GB at a time; "
            "give its processes more memory, or fewer threads"
        )
    elif kind == EngineError.__name__:
        raised = EngineError(f"{error['host']}: {message}")
    else:
        raised = EngineError(f"unexpected {kind} {at}: {message}\n{error.get('trace', '')}".rstrip())
    raise raised
