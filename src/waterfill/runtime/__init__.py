"""Compressed networks that run without becoming dense."""

from waterfill.runtime.int8.quantize import clipped, quantize_activations
from waterfill.runtime.pack import pack
from waterfill.runtime.packing.table import table
from waterfill.runtime.speed import Latency, speed

__all__ = ["Latency", "clipped", "pack", "quantize_activations", "speed", "table"]
