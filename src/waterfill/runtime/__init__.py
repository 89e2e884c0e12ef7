"""Compressed networks that run without becoming dense."""

from waterfill.runtime.measured.fastest import Fastest
from waterfill.runtime.pack import pack
from waterfill.runtime.packing.table import table
from waterfill.runtime.speed import Latency, as_type, speed

__all__ = ["Fastest", "Latency", "as_type", "pack", "speed", "table"]
