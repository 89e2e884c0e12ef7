"""Fuzz the reader with atheris: `python -m tests.fuzz.fuzz_load {file,blob} [libFuzzer's own arguments]`.

An input that crashes is written to the present folder by libFuzzer; rename it to file-* or blob-*, and put it into
crashers/, where a fast test replays it for ever.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

# An editable install imports through a finder of its own, whose modules atheris does not instrument.
sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

with atheris.instrument_imports(include=["waterfill"]):
    from tests.fuzz.targets import read_blob, read_file, seeds

    SEEDS = seeds()  # which imports every module that a reader needs


def main() -> None:
    """Fuzz one of the two targets, from the seeds and the past crashers."""
    warnings.simplefilter("error")
    which = sys.argv.pop(1)
    target = {"file": read_file, "blob": read_blob}[which]
    with tempfile.TemporaryDirectory() as corpus:
        for name, data in enumerate(data for label, data in SEEDS.items() if label.startswith(which)):
            (Path(corpus) / str(name)).write_bytes(data)
        crashers = Path(__file__).parent / "crashers"
        atheris.Setup([*sys.argv, corpus, str(crashers)], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
