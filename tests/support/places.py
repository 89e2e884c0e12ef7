"""Where things lie in the checkout."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BENCHMARKS = CHECKOUT / "benchmarks"
EXAMPLES = CHECKOUT / "examples"
FORMAT = CHECKOUT / "docs" / "format.md"
GOLDEN = CHECKOUT / "tests" / "golden"
