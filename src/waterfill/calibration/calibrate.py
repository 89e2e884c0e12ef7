"""Importance from data: what an error in each weight costs the outputs of a network on given inputs.

For each weight the layer Hessian A = X X^T (as in GPTQ) and output weights (the Gauss-Newton or Fisher diagonal), from
one forward and `probes` backward passes a batch; no labels. Gram matrices are accumulated for as many weights at once
as memory allows, and written to a folder, if there is one, as soon as they are finished.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.arithmetic import by_own_arithmetic
from waterfill.calibration.backward import Passes
from waterfill.calibration.batch_norm import statistics
from waterfill.calibration.cache import ImportanceCache, fingerprint
from waterfill.calibration.moments import bytes_kept, bytes_of
from waterfill.calibration.probes import KINDS, OUTPUTS, Loss
from waterfill.calibration.recorder import Selection
from waterfill.errors import BadInput
from waterfill.importance import Importance, ImportanceMap
from waterfill.network.kept import why_kept
from waterfill.network.layout import KERNEL, MATRIX, STACK, VECTOR, Layout, layout_of
from waterfill.network.running.batches import check_batches
from waterfill.network.running.forward import Forward
from waterfill.network.running.wrapped import unwrapped
from waterfill.network.tensors import tensors_of
from waterfill.progress import Progress

MEMORY = 1 << 30
"""Default of the bytes of Gram matrices that are accumulated in one pass over the batches."""


class Calibration(ImportanceMap):
    """The importance of weights and vectors of parameters, by name; with a cache, each is read from disk on access.

    Attributes:
        unreached: weights with two or more dimensions that have no importance, each with the reason.
        samples: output rows (images, tokens) that it was measured on.
        notes: remarks by name, such as that only a diagonal was measured.
        warnings: by name, what `CompressedModel.warnings` says of the measurement.
        unit: squared outputs, or nats, of one row that a distortion of 1 stands for.
        streamed: whether it lies in a cache on disk.
    """

    def __init__(self, cache: ImportanceCache, vectors: Container[str]) -> None:
        self._cache = cache
        remarks = {name: cache.about(name) for name in cache.names}
        missing = {name: about["reason"] for name, about in remarks.items() if about.get("reason")}
        self.unreached = {name: reason for name, reason in missing.items() if name not in vectors}
        self.notes = {name: about["note"] for name, about in remarks.items() if about.get("note")}
        self.samples = max((int(about.get("samples", 0)) for about in remarks.values()), default=0)
        self.unit = next((float(about["unit"]) for about in remarks.values() if "unit" in about), 1.0)
        self.warnings = {name: f"{reason}: what its errors cost is assumed" for name, reason in missing.items()}
        for key in ("note", "unmet"):
            for name in (name for name, about in remarks.items() if about.get(key)):
                self.warnings[name] = "; ".join([*filter(None, [self.warnings.get(name)]), remarks[name][key]])
        self.streamed = cache.folder is not None
        self._names = [name for name in cache.names if name not in missing]

    def __getitem__(self, name: str) -> Importance:
        if name not in self._names:
            raise KeyError(name)
        return self._cache.get(name).scaled(1 / float(self._cache.about(name).get("unit", 1)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Calibration({len(self)} weights, {len(self.unreached)} unreached, {self.samples} samples)"


@by_own_arithmetic
@torch.inference_mode(False)
def calibrate(  # noqa: PLR0913 - the measure, how a batch is run, and where the results are kept
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
    """Measure the importance of every weight, bias and other parameter that the batches reach.

    The distortion counts per output row (image, token). The model comes back as it was.

    Args:
        model: run in evaluation mode.
        batches: each a tensor, a tuple of arguments, a dict of them by keyword, or anything that `forward` takes.
        importance: the measure of output errors, by which the output weights are found.
            "outputs": the squared error of the outputs (Gauss-Newton, by random signs), relative to half their energy.
            "divergence": the KL divergence of probabilities, in nats, where outputs [rows, classes] or
            [rows, places, classes] can be logits; else as "outputs", not made relative.
            "auto": "divergence" for sequences [rows, places, classes], else "outputs"; both relative to the cost of
            losing all outputs.
            "fisher": the log likelihood of labels drawn from the model's own softmax over the last dimension.
            A function (outputs, batch) -> loss: a scalar, the mean over the rows of the outputs.
        probes: backward passes a batch.
        cache: a folder to keep the results in, and to go on from.
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.
        progress: called after each batch.
        seed: of the random probes.
        memory: bytes of Gram matrices accumulated in one pass over the batches; with a cache there are as many passes
            as that takes, without one a single pass. A larger matrix is reduced to its diagonal.

    Returns:
        Importance by the names of the parameters.

    Raises:
        BadInput: no batches, a batch that the model cannot take, values that are not finite, outputs without a
            gradient, or several passes over batches that can be read only once.
        PlanMismatch: a cache of another model, other batches or other options.

    Example:
        >>> importance = waterfill.calibrate(model, inputs.split(32))
        >>> small = waterfill.compress(model, importance=importance, bits=2)
    """
    if probes < 1 or memory < 1:
        raise BadInput(f"probes={probes}, memory={memory}: give 1 or more")
    if not callable(importance) and importance not in KINDS:
        raise BadInput(
            f"importance={importance!r}; it is {', '.join(map(repr, KINDS))} or a function (outputs, batch) -> loss"
        )
    model = unwrapped(model)
    check_batches(model, batches)
    weights, layouts = weights_of(model)
    options = {"importance": getattr(importance, "__qualname__", importance), "probes": probes, "seed": seed, "unit": 2}
    kept = ImportanceCache.open(cache, list(layouts), fingerprint(weights, options, batches) if cache else {})
    passes = _passes(layouts, [name for name in layouts if name not in kept], memory, cache is not None)
    if len(passes) > 1 and iter(batches) is batches:
        raise BadInput(
            f"{len(passes)} passes over the batches are needed with memory={memory}, and these can be read only once: "
            "give a list or a loader, or more memory"
        )
    run = Passes(model, batches, importance, forward, seed, progress, len(passes))
    for full in passes:
        for name, measurement in run.gather(weights, layouts, Selection(full, probes)):
            kept.put(name, measurement)
    return Calibration(kept, {name for name, layout in layouts.items() if layout.role == VECTOR})


def weights_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Layout]]:
    """The weights of a model, its vectors of parameters and statistics, and their layouts; tied ones once.

    Without complex tensors and those that are kept bit for bit. Raises BadInput for NaN.
    """
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
    """Bytes of the Gram matrices of all weights of a model: while they are summed, or as they are kept."""
    kept = sum(bytes_kept(layout) for layout in weights_of(model)[1].values() if layout.role != VECTOR)
    return max(bytes_gathered(model), kept)


def bytes_gathered(model: nn.Module) -> int:
    """Bytes of the sums of the Gram matrices of all weights of a model."""
    return sum(bytes_of(layout) for layout in weights_of(model)[1].values() if layout.role != VECTOR)


def _passes(layouts: Mapping[str, Layout], names: Iterable[str], memory: int, several: bool) -> list[dict[str, bool]]:
    """The names that each pass measures, each with whether the whole Gram matrix is accumulated."""
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
