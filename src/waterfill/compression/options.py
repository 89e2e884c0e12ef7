"""What is asked of a compression beside its budget and its recipe."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from waterfill.calibration.backward import AUTO
from waterfill.calibration.calibrate import MEMORY, Loss
from waterfill.progress import Progress

_MOST_THREADS = 4
STAGES = 64
"""Times that the inputs are run through the networks; weights of one stage do not see each other's errors."""


@dataclass(frozen=True)
class Steps:
    """What is done with inputs beside the quantization itself.

    fold: batch norms into the layers that feed them. stages: passes in which weights are fitted to the inputs that the
    compressed layers before them give, which is kept if outputs come closer; 0 for none. repair: corrections of small
    tensors, each kept only if outputs on inputs held out come closer. importance, probes: as of `calibrate`.
    """

    fold: bool = True
    stages: int = STAGES
    repair: bool = True
    importance: "str | Loss" = AUTO
    probes: int = 2


@dataclass(frozen=True)
class Options:
    """How the work is done; the result depends on `steps` alone.

    progress: called now and then. threads: weights at a time; None for one a core, at most four. memory: bytes for
    what is measured at a time; where all of it takes more, it goes through a folder. cache: that folder, kept, so that
    a later run goes on from it. work: the work directory of a file under way; None for one beside the target. force: an
    existing target may be replaced. steps: what is done with inputs.
    """

    progress: Callable[[Progress], None] | None = None
    threads: int | None = None
    memory: int = MEMORY
    cache: Path | None = None
    work: Path | None = None
    force: bool = False
    steps: Steps = Steps()

    @property
    def workers(self) -> int:
        """Threads to run."""
        return self.threads or min(_MOST_THREADS, os.cpu_count() or 1)
