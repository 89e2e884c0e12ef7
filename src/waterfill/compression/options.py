"""What is asked of a compression beside its budget."""

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
    """What is done beside the quantization itself.

    fold: batch norms into the layers that feed them. stages: passes in which weights are fitted to the inputs that the
    compressed layers before them give, which is kept if outputs come closer; 0 for none. repair: corrections of small
    tensors, each kept only if outputs on inputs held out come closer. importance, probes, memory: as of `calibrate`.
    cache: a folder for what calibration finds, from which a later run goes on; where all matrices take more than
    `memory` bytes, there is one anyway, for as long as the run lasts.
    """

    fold: bool = True
    stages: int = STAGES
    repair: bool = True
    importance: "str | Loss" = AUTO
    probes: int = 2
    cache: Path | None = None
    memory: int = MEMORY


@dataclass(frozen=True)
class Options:
    """How a job runs. force: an existing target may be replaced. threads: weights at a time, or None for one a core, at
    most four. work: the work directory, or None for one beside the target."""

    force: bool = False
    threads: int | None = None
    work: Path | None = None
    progress: Callable[[Progress], None] | None = None

    @property
    def workers(self) -> int:
        """Threads to run."""
        return self.threads or min(_MOST_THREADS, os.cpu_count() or 1)
