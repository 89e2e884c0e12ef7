"""waterfill makes trained neural networks smaller and faster, at the least possible loss, and proves it.

The names below are loaded when they are first used: `import waterfill` alone imports neither torch nor numpy.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waterfill.engine import Progress, compress
    from waterfill.errors import (
        BadInput,
        BadRecipe,
        BudgetError,
        CannotExport,
        CorruptFile,
        Mismatch,
        NewerFormat,
        OutputExists,
        PlanMismatch,
        WaterfillError,
    )
    from waterfill.importance import Importance
    from waterfill.job import Options, Plan, Summary, compress_file, plan_file
    from waterfill.model import CompressedModel, load_tensor
    from waterfill.part import Part, Spec
    from waterfill.parts import Codebook, Dense, LowRank, Prune, Quantize, Sampled
    from waterfill.recipe import parse

    load = CompressedModel.load

_ROOMS = {
    "waterfill.engine": ("Progress", "compress"),
    "waterfill.errors": (
        "BadInput",
        "BadRecipe",
        "BudgetError",
        "CannotExport",
        "CorruptFile",
        "Mismatch",
        "NewerFormat",
        "OutputExists",
        "PlanMismatch",
        "WaterfillError",
    ),
    "waterfill.importance": ("Importance",),
    "waterfill.job": ("Options", "Plan", "Summary", "compress_file", "plan_file"),
    "waterfill.model": ("CompressedModel", "load_tensor"),
    "waterfill.part": ("Part", "Spec"),
    "waterfill.parts": ("Codebook", "Dense", "LowRank", "Prune", "Quantize", "Sampled"),
    "waterfill.recipe": ("parse",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, from the module that holds it; the kinds of parts are registered with the first (PEP 562)."""
    if name == "__version__":
        return metadata.version("waterfill")
    if name == "load":
        return __getattr__("CompressedModel").load
    if name not in _HOME:
        raise AttributeError(f"module 'waterfill' has no attribute {name!r}")
    if _HOME[name] != "waterfill.errors":
        import_module("waterfill.parts")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, "load", "__version__"])
