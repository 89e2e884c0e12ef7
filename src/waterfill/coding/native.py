"""The compiled core if it was built, else None; every use of it has a NumPy form beside it.

With `WATERFILL_PURE_PYTHON=1` in the environment it is not used although it is there, to test that both agree.
"""

import importlib
import os
import warnings
from functools import cache
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("WATERFILL_PURE_PYTHON", "") not in ("", "0"):
        return None
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
