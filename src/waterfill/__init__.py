"""waterfill makes trained neural networks smaller, at the least possible loss, and proves it.

The names below are loaded when they are first used: `import waterfill` alone imports neither torch nor numpy.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waterfill.calibration.calibrate import calibrate
    from waterfill.channels.prune import prune_channels
    from waterfill.compression.allocation.budget import Budget
    from waterfill.compression.compress import compress
    from waterfill.compression.engine.dask import Dask
    from waterfill.compression.file import compress_file, plan_file
    from waterfill.compression.options import Options, Steps
    from waterfill.compression.to_quality import compress_to_quality
    from waterfill.errors import WaterfillError
    from waterfill.evaluation.evaluate import evaluate
    from waterfill.importance import Importance
    from waterfill.model.compressed import CompressedModel, load
    from waterfill.model.lazy import load_tensor
    from waterfill.part import Part, Spec
    from waterfill.parts import Codebook, Dense, LowRank, Prune, Quantize, Sampled
    from waterfill.progress import Progress
    from waterfill.recipe import parse
    from waterfill.runtime.pack import pack

__all__ = [
    "Budget",
    "Codebook",
    "CompressedModel",
    "Dask",
    "Dense",
    "Importance",
    "LowRank",
    "Options",
    "Part",
    "Progress",
    "Prune",
    "Quantize",
    "Sampled",
    "Spec",
    "Steps",
    "WaterfillError",
    "calibrate",
    "compress",
    "compress_file",
    "compress_to_quality",
    "evaluate",
    "load",
    "load_tensor",
    "pack",
    "parse",
    "plan_file",
    "prune_channels",
]
_HOME = {
    "WaterfillError": "errors",
    "Progress": "progress",
    "Importance": "importance",
    "Part": "part.equation",
    "Spec": "part.equation",
    "Codebook": "parts.codebook",
    "Dense": "parts.dense",
    "LowRank": "parts.lowrank",
    "Prune": "parts.sparse",
    "Quantize": "parts.quantized",
    "Sampled": "parts.sampled",
    "parse": "recipe",
    "CompressedModel": "model.compressed",
    "load": "model.compressed",
    "load_tensor": "model.lazy",
    "evaluate": "evaluation.evaluate",
    "calibrate": "calibration.calibrate",
    "Options": "compression.options",
    "Steps": "compression.options",
    "Budget": "compression.allocation.budget",
    "compress": "compression.compress",
    "compress_file": "compression.file",
    "Dask": "compression.engine.dask",
    "plan_file": "compression.file",
    "compress_to_quality": "compression.to_quality",
    "pack": "runtime.pack",
    "prune_channels": "channels.prune",
}
"""Where each public name is defined, below `waterfill`."""
_MODULES = ("channels", "errors", "export", "learn", "report", "runtime", "theory")
"""Public modules; `waterfill.hf` is not among them, as importing it registers with transformers."""


def __getattr__(name: str) -> Any:
    """A public name, loaded from where it is defined, or a public module (PEP 562)."""
    if name in _MODULES:
        return import_module(f"waterfill.{name}")
    if name == "__version__":
        return metadata.version("waterfill")
    if name not in _HOME:
        raise AttributeError(f"module 'waterfill' has no attribute {name!r}")
    return getattr(import_module(f"waterfill.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*_HOME, *_MODULES, "__version__"]
