"""Print a digest of the tensors that files hold, one line for each: `python -m tests.support.restored FILE ...`.

A process of its own, so that `test_settings.py` can start it under settings that only count at the start.
"""

import hashlib
import json
import sys
import warnings

import torch
from tests.golden.models import digests

import waterfill
from waterfill.coding import native


def digest(path: str) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    found = digests(waterfill.load(path).state_dict())
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def main() -> None:
    warnings.filterwarnings("ignore", "waterfill was installed without its compiled core")
    print(
        "core" if native.core is not None else "no core",
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
    )
    for path in sys.argv[1:]:
        print(digest(path))


if __name__ == "__main__":
    main()
