"""waterfill makes trained neural networks smaller and faster, at the least possible loss, and proves it.

The names below are loaded when they are first used: `import waterfill` alone imports neither torch nor numpy.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waterfill.calibration.calibrate import Calibration, calibrate
    from waterfill.compression.compress import compress
    from waterfill.compression.file import Plan, Summary, compress_file, plan_file
    from waterfill.compression.options import Options, Steps
    from waterfill.compression.post_training import compress_with_data
    from waterfill.compression.steps.repair import Repaired, repair
    from waterfill.compression.to_quality import compress_to_quality
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
    from waterfill.evaluation.evaluate import Evaluation, evaluate
    from waterfill.evaluation.quality import measure_of, parse_drop
    from waterfill.importance import Importance
    from waterfill.model.compressed import CompressedModel
    from waterfill.model.lazy import load_tensor
    from waterfill.network.batch_norm import fold_batch_norm
    from waterfill.part import Part, Spec
    from waterfill.parts import Codebook, Dense, LowRank, Prune, Quantize, Sampled
    from waterfill.progress import Progress
    from waterfill.recipe import parse

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
_HOME = {
    "BadInput": "errors",
    "BadRecipe": "errors",
    "BudgetError": "errors",
    "CannotExport": "errors",
    "CorruptFile": "errors",
    "Mismatch": "errors",
    "NewerFormat": "errors",
    "OutputExists": "errors",
    "PlanMismatch": "errors",
    "WaterfillError": "errors",
    "Progress": "progress",
    "Importance": "importance",
    "Part": "part",
    "Spec": "part",
    "parse": "recipe",
    "Codebook": "parts",
    "Dense": "parts",
    "LowRank": "parts",
    "Prune": "parts",
    "Quantize": "parts",
    "Sampled": "parts",
    "CompressedModel": "model.compressed",
    "load": "model.compressed",
    "load_tensor": "model.lazy",
    "fold_batch_norm": "network.batch_norm",
    "Evaluation": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "Calibration": "calibration.calibrate",
    "calibrate": "calibration.calibrate",
    "Options": "compression.options",
    "Plan": "compression.file",
    "Summary": "compression.file",
    "compress_file": "compression.file",
    "plan_file": "compression.file",
    "compress": "compression.compress",
    "Steps": "compression.options",
    "compress_with_data": "compression.post_training",
    "compress_to_quality": "compression.to_quality",
    "measure_of": "evaluation.quality",
    "parse_drop": "evaluation.quality",
    "Repaired": "compression.steps.repair",
    "repair": "compression.steps.repair",
}
"""Where each public name is defined, below `waterfill`."""


def __getattr__(name: str) -> Any:
    """A public name, loaded from where it is defined (PEP 562)."""
    if name == "__version__":
        return metadata.version("waterfill")
    if name not in _HOME:
        raise AttributeError(f"module 'waterfill' has no attribute {name!r}")
    return getattr(import_module(f"waterfill.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
