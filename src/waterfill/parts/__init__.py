"""The kinds of parts, one to a file."""

from waterfill.parts.codebook import Codebook
from waterfill.parts.dense import Dense
from waterfill.parts.lattice import Composition, Lattice, composed
from waterfill.parts.lowrank import LowRank
from waterfill.parts.memory import counts_memory, packed
from waterfill.parts.quantized import Quantize
from waterfill.parts.sampled import Sampled
from waterfill.parts.sparse import Prune

__all__ = [
    "Codebook",
    "Composition",
    "Dense",
    "Lattice",
    "LowRank",
    "Prune",
    "Quantize",
    "Sampled",
    "composed",
    "counts_memory",
    "packed",
]
