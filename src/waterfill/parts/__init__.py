"""The kinds of parts, one to a file."""

from waterfill.parts.codebook import Codebook
from waterfill.parts.dense import Dense
from waterfill.parts.fixed_rate.in_format import InFormat, for_kernels, format_of
from waterfill.parts.lowrank import LowRank
from waterfill.parts.memory import PACKED, counts_memory, to_run
from waterfill.parts.quantized import Quantize
from waterfill.parts.sampled import Sampled
from waterfill.parts.sparse import Prune
from waterfill.parts.trained.composition import Composition
from waterfill.parts.trained.lattice import Lattice, by_codes
from waterfill.parts.trained.numbers import Numbers, by_numbers

__all__ = [
    "PACKED",
    "Codebook",
    "Composition",
    "Dense",
    "InFormat",
    "Lattice",
    "LowRank",
    "Numbers",
    "Prune",
    "Quantize",
    "Sampled",
    "by_codes",
    "by_numbers",
    "counts_memory",
    "for_kernels",
    "format_of",
    "to_run",
]
