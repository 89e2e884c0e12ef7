"""Which waterfill this is: its version and a digest of its code, by which machines that fit alike know each other."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from waterfill.errors import EngineError

_DIGITS = 16


@cache
def here() -> tuple[str, str]:
    """The version, and the digest of all modules: two copies of one version that were changed have different ones."""
    digest, folder = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return metadata.version("waterfill"), digest.hexdigest()[:_DIGITS]


def check(version: str, code: str) -> None:
    """Raise EngineError where a job was begun by another waterfill than the one that runs here."""
    own, own_code = here()
    if own != version:
        raise EngineError(
            f"waterfill is {own} there, and {version} where the job was begun; install the same on every machine"
        )
    if own_code != code:
        raise EngineError(
            f"waterfill {own} has other code there than where the job was begun; install the same on every machine"
        )


def fingerprint(text: str) -> str:
    """What tells a piece of work from all others: weights, recipe, price, version and code are in its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
