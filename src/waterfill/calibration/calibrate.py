"""Importance from data: what an error in each weight costs the outputs of a network on given inputs.

One forward and `probes` backward passes a batch; no labels. Matrices are gathered for as many weights at once as memory
allows, and written to a folder, if there is one, as soon as they are finished.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.calibration.backward import KINDS, OUTPUTS, Loss, Passes
from waterfill.calibration.batch_norm import statistics
from waterfill.calibration.cache import ImportanceCache, fingerprint
from waterfill.calibration.moments import bytes_of
from waterfill.calibration.recorder import Wanted
from waterfill.errors import BadInput
from waterfill.importance import Importance, ImportanceMap
from waterfill.network.kept import why_kept
from waterfill.network.layout import KERNEL, MATRIX, STACK, VECTOR, Layout, layout_of
from waterfill.network.running.batches import check_batches
from waterfill.network.running.forward import Forward
from waterfill.network.tensors import tensors_of
from waterfill.progress import Progress

MEMORY = 1 << 30
"""Bytes of Gram matrices that are gathered in one pass over the batches, where nothing else is said."""


class Calibration(ImportanceMap):
    """Importance by the names of weights, and of vectors of parameters, read from disk when asked for if in a cache.

    unreached: why the other weights with two or more dimensions have none. samples: rows of outputs that were seen
    (images, or tokens). notes: remarks by name. warnings: what a table says of weights, and vectors, beside their
    importance. unit: what a D of 1 is in squared outputs, or in nats, of one row.
    """

    def __init__(self, shelf: ImportanceCache, vectors: Container[str]) -> None:
        self._shelf = shelf
        found = {name: shelf.about(name) for name in shelf.names}
        missing = {name: about["reason"] for name, about in found.items() if about.get("reason")}
        self.unreached = {name: reason for name, reason in missing.items() if name not in vectors}
        self.notes = {name: about["note"] for name, about in found.items() if about.get("note")}
        self.samples = max((int(about.get("samples", 0)) for about in found.values()), default=0)
        self.unit = next((float(about["unit"]) for about in found.values() if "unit" in about), 1.0)
        self.warnings = {name: f"{reason}: what its errors cost is assumed" for name, reason in missing.items()}
        for key in ("note", "unmet"):
            for name in (name for name, about in found.items() if about.get(key)):
                self.warnings[name] = "; ".join([*filter(None, [self.warnings.get(name)]), found[name][key]])
        self.streamed = shelf.folder is not None
        self._names = [name for name in shelf.names if name not in missing]

    def __getitem__(self, name: str) -> Importance:
        if name not in self._names:
            raise KeyError(name)
        return self._shelf.get(name).scaled(1 / float(self._shelf.about(name).get("unit", 1)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Calibration({len(self)} weights, {len(self.unreached)} unreached, {self.samples} samples)"


@by_own_arithmetic
@torch.inference_mode(False)
def calibrate(  # noqa: PLR0913 - what is asked for, how a batch is run, and where the results go
    model: nn.Module,
    batches: Iterable[Any],
    *,
    importance: "str | Loss" = OUTPUTS,
    probes: int = 1,
    cache: Path | None = None,
    forward: Forward | None = None,
    progress: Callable[[Progress], None] | None = None,
    seed: int = 0,
    memory: int = MEMORY,
) -> Calibration:
    """The importance of every weight, bias and other parameter that the batches reach.

    A batch is a tensor, a tuple of arguments, or a dict of them by keyword; `forward(model, batch)` where it is none.
    importance: "outputs", Gauss-Newton weights of the squared error of the outputs, by random signs at each of them, D
    relative to half their energy; "divergence", those of the divergence of probabilities, in nats, where outputs
    [rows, classes] or [rows, places, classes] may be logits, else signs; "auto", the probes of "divergence" where every
    place of a sequence has outputs of its own, else signs, D relative to what losing all outputs would cost;
    "fisher", the gradient of the log likelihood of labels drawn from the model's own softmax over the last dimension;
    or a loss (outputs, batch) -> scalar, the mean over the rows of the outputs. D counts per output row (image, token).
    probes: backward passes a batch. cache: a folder to keep the results in and to go on from. memory: bytes of Gram
    matrices gathered in one pass over the batches, which must then be iterable again; without a cache all are gathered
    in one pass, and a matrix that alone is larger is gathered as its diagonal only. The model comes back as it was.
    Raises BadInput: no batches, a batch the model cannot take, values that are not finite, outputs without a gradient;
    PlanMismatch for a cache of another model or of other options.
    """
    if probes < 1 or memory < 1:
        raise BadInput(f"probes={probes}, memory={memory}: give 1 or more")
    if not callable(importance) and importance not in KINDS:
        raise BadInput(
            f"importance={importance!r}; it is {', '.join(map(repr, KINDS))} or a function (outputs, batch) -> loss"
        )
    check_batches(model, batches)
    weights, layouts = weights_of(model)
    options = {"importance": getattr(importance, "__qualname__", importance), "probes": probes, "seed": seed, "unit": 2}
    shelf = ImportanceCache.open(cache, list(layouts), fingerprint(weights, options, batches) if cache else {})
    passes = _passes(layouts, [name for name in layouts if name not in shelf], memory, cache is not None)
    if len(passes) > 1 and iter(batches) is batches:
        raise BadInput(
            f"{len(passes)} passes over the batches are needed with memory={memory}, and these can be read only once: "
            "give a list or a loader, or more memory"
        )
    run = Passes(model, batches, importance, forward, seed, progress, len(passes))
    for wanted in passes:
        for name, found in run.gather(weights, layouts, Wanted(wanted, probes)):
            shelf.put(name, found)
    return Calibration(shelf, {name for name, layout in layouts.items() if layout.role == VECTOR})


def weights_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Layout]]:
    """The weights of a model, its vectors of parameters and statistics, tied ones once, and their layouts; not what is
    kept bit for bit, whatever its errors would cost, nor complex ones. Raises BadInput for NaN."""
    tensors, _, roles = tensors_of(model)
    tensors = {name: value for name, value in tensors.items() if not value.is_complex() and not why_kept(name, value)}
    layouts = {name: layout_of(tuple(t.shape), t.dtype, roles.get(name)) for name, t in tensors.items()}
    vectors = {name for name, _ in model.named_parameters(remove_duplicate=False)} | set(statistics(model))
    layouts = {
        name: layout
        for name, layout in layouts.items()
        if layout.role in (MATRIX, KERNEL, STACK) or (layout.role == VECTOR and name in vectors)
    }
    return {name: tensors[name] for name in layouts}, layouts


def bytes_in_all(model: nn.Module) -> int:
    """Memory for the Gram matrices of all weights of a model at once, bytes."""
    return sum(bytes_of(layout) for layout in weights_of(model)[1].values() if layout.role != VECTOR)


def _passes(layouts: Mapping[str, Layout], names: Iterable[str], memory: int, several: bool) -> list[dict[str, bool]]:
    """Weights to gather together, and whether their whole Gram matrices."""
    passes: list[dict[str, bool]] = []
    room = 0
    for name in names:
        size = bytes_of(layouts[name])
        full = size <= memory and layouts[name].role != VECTOR
        size = size if full else 0
        if not passes or (several and size > room):
            passes.append({})
            room = memory
        passes[-1][name] = full
        room -= size
    return passes
