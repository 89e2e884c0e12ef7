"""Options of a compression: how the work is done, and which steps are taken with inputs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from waterfill.calibration.calibrate import MEMORY, Loss
from waterfill.calibration.probes import AUTO
from waterfill.errors import BadRecipe
from waterfill.part.formats import FORMATS
from waterfill.parts import PACKED
from waterfill.progress import Progress, Report, shown

_MOST_THREADS = 4
STAGES = 64
"""Passes of the inputs through both networks while weights are fitted in order. Weights fitted in the same pass do not
compensate for each other's errors."""

AUTO_BLOCKS, NO_BLOCKS = "auto", "none"
"""Values of `Options.blocks`: the blocks of a large network are found, or none are looked for."""


@dataclass(frozen=True)
class Steps:
    """The steps taken with inputs, beside fitting each weight by itself.

    Args:
        fold: fold batch norms into the layers that feed them.
        stages: passes in which weights are fitted again, in order of execution, to the inputs that the compressed
            layers before them give; kept if outputs come closer. 0 for none.
        repair: correct biases, norms and scales; each kind kept only if outputs on held-out inputs come closer.
        importance: as of `calibrate`.
        probes: as of `calibrate`.

    Example:
        >>> quick = Options(steps=Steps(stages=0, repair=False))
    """

    fold: bool = True
    stages: int = STAGES
    repair: bool = True
    importance: "str | Loss" = AUTO
    probes: int = 2


@dataclass(frozen=True)
class Options:
    """How the work is done, and how the network is to run; only `steps`, `blocks` and `runs` change the result.

    Args:
        progress: called with a `Progress` after each batch or tensor. None shows a bar in a terminal or a notebook,
            True always, False never.
        threads: weights fitted at a time; None for one a core, at most four for files and two for models in memory.
        memory: bytes of Gram matrices measured at a time; if all of them take more, they are kept in a folder.
        cache: that folder, kept, so that a later run goes on from it; None for a temporary one.
        work: the work directory of `compress_file`; None for one beside the target.
        force: whether an existing target of `compress_file` may be replaced.
        steps: what is done with inputs.
        blocks: the list of modules, such as "model.layers", that a network with inputs is compressed by block by block,
            which takes time in proportion to its depth and little memory; "auto" for its largest list, where it has
            67 million weights or more; "none" for the network as a whole.
        runs: "packed" for weights that packed layers (`waterfill.pack`) hold in no more memory than the budget says:
            codes that all fit a few bits. Budgets then count, for each matrix, its bits in the file or in memory,
            whichever are more. Or a format of exports, "onnx", "openvino", "gguf" or "compressed-tensors": every matrix
            has codes that it runs, and budgets count the bytes of the file there. None for the smallest file.
        beside: bytes of that file which are no weights: the graph (`waterfill.export.beside`), a tokenizer.

    Raises:
        BadRecipe: another `runs`.

    Example:
        >>> small = waterfill.compress(model, batches, bits=4, options=Options(runs="packed"))
    """

    progress: Callable[[Progress], None] | bool | None = None
    threads: int | None = None
    memory: int = MEMORY
    cache: Path | None = None
    work: Path | None = None
    force: bool = False
    steps: Steps = Steps()
    blocks: str = AUTO_BLOCKS
    runs: str | None = None
    beside: int = 0

    def __post_init__(self) -> None:
        if self.runs not in (None, PACKED, *FORMATS):
            known = ", ".join(map(repr, (PACKED, *FORMATS)))
            raise BadRecipe(f"runs={self.runs!r} is no way to run that budgets know; give one of {known}, or None")

    def written_as(self, format: str | None) -> "Options":
        """The options for a network that is exported to a format, None for none. Raises BadRecipe."""
        if format is None:
            return self
        if self.runs not in (None, format):
            raise BadRecipe(f"runs={self.runs!r} and format={format!r} are two budgets; give one of them")
        if format not in FORMATS:
            raise BadRecipe(f"format={format!r} is none that budgets know; give one of {', '.join(FORMATS)}, or None")
        return replace(self, runs=format)

    @property
    def report(self) -> Report | None:
        """The function that is told of progress; None for nobody."""
        return self.progress if callable(self.progress) else None

    @contextmanager
    def shown(self) -> "Iterator[Options]":
        """A block whose progress is shown: with options whose `report` does so."""
        with shown(self.progress) as report:
            yield replace(self, progress=report or False)

    @property
    def workers(self) -> int:
        """Threads to run: `threads`, or one a core, at most four."""
        return self.threads or min(_MOST_THREADS, os.cpu_count() or 1)
