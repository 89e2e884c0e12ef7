"""What became of a network: tables and pages, files side by side, the weights that matter, the bound.

`describe` makes a page about a file, `compare` a table of many files of one network, `sensitivity` says what a network
loses if one weight alone has few bits. They are loaded when they are first used: the listing of a file needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waterfill.report.comparison.compare import compare
    from waterfill.report.comparison.rows import Comparison
    from waterfill.report.comparison.sensitivity import Sensitivity, sensitivity
    from waterfill.report.page.report import Report, describe

__all__ = ["Comparison", "Report", "Sensitivity", "compare", "describe", "sensitivity"]
_HOME = {
    "Comparison": "comparison.rows",
    "Report": "page.report",
    "Sensitivity": "comparison.sensitivity",
    "compare": "comparison.compare",
    "describe": "page.report",
    "sensitivity": "comparison.sensitivity",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded from where it is defined (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'waterfill.report' has no attribute {name!r}")
    return getattr(import_module(f"waterfill.report.{_HOME[name]}"), name)
