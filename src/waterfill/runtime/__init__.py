"""Compressed networks that run without becoming dense."""

from waterfill.runtime.pack import pack, table

__all__ = ["pack", "table"]
