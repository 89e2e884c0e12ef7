"""The ready-made loop: a network compressed, trained in compressed form and written within its budget."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import SGD, Adam

from waterfill.assignment import Assignment, Recipe
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.options import Options
from waterfill.compression.post_training import DEFAULT_SPEC, Calibrated, calibrated, fold_notes
from waterfill.compression.steps.prepare import prepare
from waterfill.compression.task import resolve
from waterfill.dtypes import octets
from waterfill.errors import BadInput, BadRecipe, BudgetError
from waterfill.learn.learners.frozen_codes import FrozenCodes
from waterfill.learn.learners.lc import LC
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.ranks import by_first, rank_and_ranks
from waterfill.learn.learners.scales import Scales
from waterfill.learn.learners.schedule import Schedule
from waterfill.learn.learners.straight_through import StraightThrough, has_codes
from waterfill.learn.learners.vectors import Vectors
from waterfill.learn.loop.batches import Stream
from waterfill.learn.loop.folder import CODES, PHASES, PLAIN, START, WorkFolder
from waterfill.learn.loop.objective import Loss, Objective
from waterfill.learn.loop.phase import Phase
from waterfill.learn.loop.training import LC_STEPS, Training
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.batches import tensors_in
from waterfill.network.running.forward import Forward, as_deployed, copy_of
from waterfill.network.running.inputs import Inputs
from waterfill.network.running.state import random_numbers, unchanged
from waterfill.network.running.wrapped import unwrapped
from waterfill.part import Spec
from waterfill.recipe import as_spec
from waterfill.storage.remarks import UNTRAINED

_CALIBRATED = 8  # batches that the compression before is calibrated with; as many decide what is better
_REMARK = 24  # bytes that a remark takes, at most
_MOMENTA, _FUSED = (0.9, 0.99), ("cpu", "cuda")  # of Adam, for codes and numbers beside them
_RISE = 1000.0  # of mu, from the first C step to the last
SCALAR = "Quantize() | Prune(pattern='columns', values=Quantize()) | LowRank(factors=Quantize())"
"""What straight-through training starts from: the choice that `compress` has, with codes that can be changed alone."""
AT_ONCE = "Quantize()"
"""What the LC algorithm learns where nothing else is said."""
_DEFAULT, _OPTIONS = Training(), Options()


def run(  # noqa: PLR0913 - what is learned, from what, to what size, and how the work is done
    model: nn.Module,
    batches: Iterable[Any],
    *,
    budget: Budget,
    spec: "Recipe | None" = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    teacher: nn.Module | None = None,
    training: Training = _DEFAULT,
    options: Options = _OPTIONS,
    save: Callable[[CompressedModel], object] | None = None,
) -> CompressedModel:
    """Compress a network and train it in compressed form, without labels unless a loss is given.

    In several processes (`torch.distributed`) each takes its share of the batches, and all return the same.

    Args:
        model: the network, which stays as it is; a copy is trained, in evaluation mode, its norms folded. Parameters
            that are frozen (`requires_grad=False`) while others are not are compressed and stay so.
        batches: inputs as for `compress`, a list or a loader with a length; far more than a few hundred.
        budget: what the file may have.
        spec: what weights become; for "straight-through" scalar codes, alone, as factors or as what is kept of columns.
            For "lc" any, or one for each layer, by pattern of names as for `LC`.
            None: the cheapest of these for each weight; and what `compress` makes by itself, its scales and vectors
            trained or not, is returned where the others stay behind it.
        loss: (what the model returned, the batch) -> a scalar; None: the distance to what `teacher` says (`Imitation`).
        teacher: a network of any shape, such as a larger one for the same task, whose outputs are to be imitated; it
            stays as it is and runs in evaluation mode. None: `model`.
        forward: as for `compress`.
        training: epochs, rate, method.
        options: progress, and `work`: a folder for snapshots, from which the same call goes on.
        save: called with the result, in the first process, before the snapshots are removed.

    Returns:
        The network, within its budget; as before training where that made it worse (`warnings` says so), or where so
        few bytes hold no codes that can learn.

    Raises:
        BadInput: a loss that is not finite, batches that end early, outputs that cannot be compared, a teacher beside a
            loss or `features`.
        BadRecipe: a spec without meaning, or for each layer where codes follow the weights; options with `runs`.
        BudgetError: a budget that cannot be met.
        PlanMismatch: a folder of snapshots of another training.
        OutputExists: a folder that holds other files of the same names, or in which another process works.

    Example:
        >>> small = learn.run(model, inputs.split(128), budget=Budget(ratio=24), training=Training(epochs=5))
    """
    if not isinstance(budget, Budget):
        raise BadInput(f"budget={budget!r} is a {type(budget).__name__}; say what it counts: budget=Budget(bits=2)")
    if options.runs is not None:
        raise BadRecipe(f"runs={options.runs!r}: codes that learn have no given width; compress so without training")
    model, (rank, ranks) = unwrapped(model), rank_and_ranks()
    with options.shown() as settled, random_numbers(training.seed):  # a loader may draw: in every process alike
        Inputs(batches, forward).check(model)
        some = Inputs(batches, forward).spread(2 * _CALIBRATED)
        few, judged = Inputs(some[::2], forward), Inputs(some[1::2] or some, forward)
        stream = Stream(batches, training.seed, rank, ranks)
        reference = model if teacher is None else _fitting(teacher, loss, training)
        objective = Objective(reference, forward, loss, training)
        if teacher is not None:  # whether outputs can be compared is known before anything takes long
            objective.measured(model, few.first)
        folder = WorkFolder(None if options.work is None else Path(options.work))
        work = _Run(model, objective, training, replace(settled, work=None), stream, folder, few, judged, budget)
        values = some if isinstance(batches, Sequence) else ()
        plan: dict[str, Any] = {"budget": budget.given, "spec": f"{spec!r}", "training": repr(training)}
        plan |= {"steps": repr(options.steps), "loss": "none" if loss is None else "given"}
        if teacher is not None:
            plan |= {"teacher": _digest(teacher.state_dict().items())}
        plan |= {"processes": ranks, "batches": stream.steps, "inputs": _digest([("", values)])}
        with folder.claimed(plan | {"weights": _digest(model.state_dict().items())}):
            made = work.result(spec)
            if save is not None:
                by_first(lambda: save(made) and None)
    return made


@dataclass(frozen=True, eq=False)
class _Run:
    """One training: compress, train codes, freeze them, train the numbers beside them, and those of what `compress`
    makes by itself. What is done is kept in the folder.

    few: inputs to calibrate with. judged: others, that decide what is better.
    """

    model: nn.Module
    objective: Objective
    training: Training
    options: Options
    stream: Stream
    folder: WorkFolder
    few: Inputs
    judged: Inputs
    budget: Budget

    def result(self, spec: "Recipe | None") -> CompressedModel:
        """The network within its budget."""
        steps = max(1, round(self.training.epochs * self.stream.steps))
        last = round(self.training.last * steps)
        if self.objective.has_stages:
            self.objective.choose_stages(self._copy(), self.few.first)
        by_lc = self.training.method == LC_STEPS
        wanted: dict[str, Spec | None] = {PLAIN: None} if spec is None else {}
        if not by_lc:
            if isinstance(spec, Mapping) or not Assignment.of(spec).is_for_all:
                raise BadRecipe('a spec for each layer goes with Training(method="lc")')
            wanted[START] = as_spec(SCALAR if spec is None else spec)
        found = self._untrained(wanted)
        if not by_lc:
            last = last if self._beside_codes(found[-1]) else 0
            none = len(found) < len(wanted) or not has_codes(found[-1])  # no room for codes that learn, or constants
            if spec is None and none:
                return found[0]
        more = last if PLAIN in wanted and not by_lc and self._beside_codes(found[0]) else 0
        of_codes, of_vectors, of_plain = (partial(self._phase, name, total=steps + more) for name in PHASES)
        untrained, phase = len(found), of_codes(0, steps - last)
        codes = self.folder.together(
            CODES, lambda: self._by_lc(spec, phase) if by_lc else self._straight_through(found[-1], phase)
        )
        found.append(codes)
        size = self._bytes(codes)
        if last and self._beside_codes(codes):
            found.append(self._with_numbers(codes, size, of_vectors(steps - last, last)))
        if more:  # codes along a trellis, which stay, may be worth more than codes that learn
            plain = self._with_numbers(found[0], size, of_plain(steps, more))
            found += [] if plain is found[0] else [plain]
        return self._best(found, untrained, size)

    def _untrained(self, wanted: Mapping[str, Spec | None]) -> list[CompressedModel]:
        """The network compressed without training, to several specs; calibrated once. A later one may be too large."""
        with ExitStack() as stack:
            measured = cache(lambda: stack.enter_context(calibrated(self.model, self.few, None, self.options)))
            made = []
            for name, own in wanted.items():
                try:
                    made.append(self.folder.kept(name, partial(lambda own: self._compressed(measured(), own), own)))
                except BudgetError:
                    if not made:
                        raise
            return made

    def _compressed(self, measured: Calibrated, spec: Spec | None) -> CompressedModel:
        """The network compressed, with room for a remark."""
        allowed, budget = measured.allowed(self.budget), resolve(self.budget, DEFAULT_SPEC if spec is None else spec)
        if allowed is not None and allowed > 2 * _REMARK:
            budget = Budget(size=allowed - _REMARK)
        wanted = measured if spec is None else measured.with_spec(spec)
        try:
            return wanted.to(budget)
        except BudgetError:  # without room for a remark, then
            return wanted.to(resolve(self.budget, DEFAULT_SPEC if spec is None else spec))

    def _phase(self, name: str, before: int, count: int, total: int) -> Phase:
        progress = self.options.report
        return Phase(name, self.objective, self.training, self.stream, self.folder, before, count, total, progress)

    def _with_numbers(self, made: CompressedModel, size: int | None, phase: Phase) -> CompressedModel:
        """A compressed network after the numbers beside its codes were trained."""
        learner = FrozenCodes(self._copy(), made, size)
        return phase.train(learner, self._adam(learner))

    def _best(self, found: list[CompressedModel], untrained: int, size: int | None) -> CompressedModel:
        """The network with the least loss; with a remark, where there is room, if it is one of those not trained."""
        losses = by_first(lambda: [self._measured(made) for made in found])
        chosen = max(i for i, loss in enumerate(losses) if loss == min(losses))
        if chosen >= untrained:
            return found[chosen]
        notes = found[chosen].notes
        remarked = replace(found[chosen], notes=notes | {"remarks": [*notes.get("remarks", []), UNTRAINED]})
        return remarked if size is None or remarked.size <= size else found[chosen]

    def _measured(self, made: CompressedModel) -> float:
        """The mean loss of a compressed network over a few batches; infinite where it is no number."""
        work = made.install(self._copy())
        losses = [self.objective.measured(work, batch) for batch in self.judged.batches]
        mean = sum(losses) / len(losses)
        return math.inf if math.isnan(mean) else mean

    def _straight_through(self, start: CompressedModel, phase: Phase) -> CompressedModel:
        learner = StraightThrough(self._copy(), start, self._bytes(start))
        return phase.train(learner, self._adam(learner))

    def _adam(self, learner: Learner) -> Adam:
        """The optimizer of codes and numbers, in one pass over each tensor where every supported PyTorch has that."""
        groups = learner.groups()
        fused = all(value.device.type in _FUSED for group in groups for value in group["params"])
        return Adam(groups, self.training.first_rate, betas=_MOMENTA, fused=fused)

    def _by_lc(self, spec: "Recipe | None", phase: Phase) -> CompressedModel:
        work = self._copy()
        folded = fold_notes(self.model, work)  # before training moves what is folded
        growth = _RISE ** (1 / max(1, -(-phase.count // phase.every(LC))))
        schedule = self.training.schedule or Schedule(growth=growth)
        learner = LC(work, AT_ONCE if spec is None else spec, budget=self.budget, schedule=schedule)
        with self.objective.watching(work), as_deployed(work, self.objective.reference), unchanged(work):
            learner.start(lambda: self.objective(work, self.few.first))
        learner.load(by_first(learner.state))  # which depends on the inputs
        made = phase.train(learner, SGD(learner.parameters(), self.training.first_rate, momentum=_MOMENTA[0]))
        return replace(made, notes=made.notes | {"folded": folded})

    def _beside_codes(self, made: CompressedModel) -> bool:
        """Whether a compressed network has numbers beside its codes to be trained."""
        vectors = Vectors(self._prepared, made, self._bytes(made) or made.size)
        return bool(vectors) or bool(Scales(self._prepared, made))

    def _bytes(self, made: CompressedModel) -> int | None:
        return self.budget.file_bytes(made.weights, int(made.notes["original"]))

    def _copy(self) -> nn.Module:
        """A network to be trained, as it was before."""
        return copy_of(self._prepared)

    @cached_property
    def _prepared(self) -> nn.Module:
        """The network with its norms folded; all that can be trained is, unless only some of it is to be."""
        work = prepare(self.model, self.few, self.options.steps).model
        frozen = {name for name, value in self.model.named_parameters() if not value.requires_grad}
        every = len(frozen) == len(dict(self.model.named_parameters()))
        for name, value in work.named_parameters():
            value.requires_grad_((every or name not in frozen) and value.dtype.is_floating_point)
        return work


def _fitting(teacher: nn.Module, loss: Loss | None, training: Training) -> nn.Module:
    """The teacher. Raises BadInput where it would go unheard, or where stages of two networks would be compared."""
    if not isinstance(teacher, nn.Module):
        raise BadInput(f"teacher={teacher!r} is a {type(teacher).__name__}; give the network itself")
    if loss is not None:
        raise BadInput("a teacher is not heard beside a loss: let the loss ask it, or leave one of them out")
    if training.features > 0:
        raise BadInput("features compare one network before and after, and a teacher is another one: features=0")
    return teacher


def _digest(values: Iterable[tuple[str, Any]]) -> str:
    """A checksum of named values with tensors in them."""
    digest = hashlib.sha256()
    for name, value in values:
        for tensor in tensors_in(value):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(octets(tensor.detach().cpu()).numpy().data)
    return digest.hexdigest()
