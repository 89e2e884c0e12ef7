"""The compiled core if it was built, else None; whoever uses it has a NumPy form beside it."""

import importlib
from types import ModuleType


def _load() -> ModuleType | None:
    try:
        return importlib.import_module("waterfill._native")
    except ImportError:
        return None


native = _load()
