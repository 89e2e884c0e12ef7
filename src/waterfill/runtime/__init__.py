"""Compressed networks that run without becoming dense."""

from waterfill.runtime.fused.fuse import fuse
from waterfill.runtime.int8.quantize import clipped, quantize_activations
from waterfill.runtime.measured.fastest import Fastest
from waterfill.runtime.pack import pack
from waterfill.runtime.packing.table import table
from waterfill.runtime.speed import Latency, as_type, speed

__all__ = ["Fastest", "Latency", "as_type", "clipped", "fuse", "pack", "quantize_activations", "speed", "table"]
