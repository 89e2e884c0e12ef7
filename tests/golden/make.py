"""Write the golden blobs of the coding layer: `python -m tests.golden.make`, once for every version of the format.

A golden blob stays as it is for ever, and every later release must read it; so nothing is ever overwritten. A blob that
is there already is left alone, whether or not today's writer would write the same bytes.
"""

import json
from pathlib import Path

from tests.support import codes as made

FOLDER = Path(__file__).parent / "codes-1"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    plain = {name: (codes, kernel, 0) for name, (codes, kernel) in made.EXAMPLES.items()}
    for name, (codes, kernel, states) in (plain | made.TRELLISES).items():
        blob = FOLDER / f"{name.replace(' ', '-')}.bin"
        if blob.exists():
            continue
        _, data = made.written(codes, kernel, states)
        recorded = {"shape": codes.shape, "kernel": kernel, "codes": codes.tolist()}
        blob.with_suffix(".json").write_text(json.dumps(recorded) + "\n", "utf-8")
        blob.write_bytes(data)


if __name__ == "__main__":
    main()
