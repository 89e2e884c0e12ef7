"""Compressed networks that run without becoming dense."""

from waterfill.runtime.pack import pack
from waterfill.runtime.packing.table import table
from waterfill.runtime.speed import Latency, speed

__all__ = ["Latency", "pack", "speed", "table"]
