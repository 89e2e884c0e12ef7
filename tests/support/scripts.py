"""The scripts of the benchmarks as modules."""

import importlib
from types import ModuleType


def script(name: str) -> ModuleType:
    """A script or a module of `benchmarks/`, such as "report" or "lib.common"."""
    return importlib.import_module(name)
