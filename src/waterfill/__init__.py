"""waterfill makes trained neural networks smaller and faster, at the least possible loss, and proves it.

The names below are loaded when they are first used: `import waterfill` alone imports neither torch nor numpy.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waterfill.calibration import Calibration, calibrate
    from waterfill.engine import compress
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
    from waterfill.evaluation import Evaluation, evaluate
    from waterfill.folding import fold_batch_norm
    from waterfill.importance import Importance
    from waterfill.job import Options, Plan, Summary, compress_file, plan_file
    from waterfill.model import CompressedModel, load_tensor
    from waterfill.part import Part, Spec
    from waterfill.parts import Codebook, Dense, LowRank, Prune, Quantize, Sampled
    from waterfill.posttraining import Steps, compress_with_data
    from waterfill.quality import compress_to_quality, measure_of, parse_drop
    from waterfill.recipe import parse
    from waterfill.repairs import Repaired, repair
    from waterfill.run import Progress

    load = CompressedModel.load

__all__ = [
    "BadInput",
    "BadRecipe",
    "BudgetError",
    "Calibration",
    "CannotExport",
    "Codebook",
    "CompressedModel",
    "CorruptFile",
    "Dense",
    "Evaluation",
    "Importance",
    "LowRank",
    "Mismatch",
    "NewerFormat",
    "Options",
    "OutputExists",
    "Part",
    "Plan",
    "PlanMismatch",
    "Progress",
    "Prune",
    "Quantize",
    "Repaired",
    "Sampled",
    "Spec",
    "Steps",
    "Summary",
    "WaterfillError",
    "calibrate",
    "compress",
    "compress_file",
    "compress_to_quality",
    "compress_with_data",
    "evaluate",
    "fold_batch_norm",
    "load",
    "load_tensor",
    "measure_of",
    "parse",
    "parse_drop",
    "plan_file",
    "repair",
]
_ROOMS = (
    "errors",
    "parts",
    "recipe",
    "model",
    "run",
    "engine",
    "calibration",
    "job",
    "evaluation",
    "folding",
    "posttraining",
    "quality",
    "repairs",
)


def __getattr__(name: str) -> Any:
    """A public name, from the first room that has it (PEP 562). Rooms that use parts come after `parts`."""
    if name == "__version__":
        return metadata.version("waterfill")
    if name == "load":
        return __getattr__("CompressedModel").load
    if name in __all__:
        for room in _ROOMS:
            module = import_module(f"waterfill.{room}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'waterfill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
