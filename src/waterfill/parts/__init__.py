"""The kinds of parts, one to a file."""

from waterfill.parts.codebook import Codebook
from waterfill.parts.dense import Dense
from waterfill.parts.lattice import Lattice, lattice_of
from waterfill.parts.lowrank import LowRank
from waterfill.parts.quantized import Quantize
from waterfill.parts.sampled import Sampled
from waterfill.parts.sparse import Prune

__all__ = ["Codebook", "Dense", "Lattice", "LowRank", "Prune", "Quantize", "Sampled", "lattice_of"]
