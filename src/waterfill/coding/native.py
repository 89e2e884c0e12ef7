"""The compiled core if it was built, else None; whoever uses it has a NumPy form beside it."""

import importlib
import warnings
from functools import cache
from types import ModuleType


def _load() -> ModuleType | None:
    try:
        return importlib.import_module("waterfill._native")
    except ImportError:
        return None


core = _load()


@cache
def warn_if_missing() -> None:
    """Say once, at the first use that is slow, that the compiled core was not built."""
    if core is None:
        warnings.warn(
            "waterfill was installed without its compiled core: everything works, but slower; "
            "install a C++ compiler and reinstall waterfill for speed",
            RuntimeWarning,
            stacklevel=5,
        )
