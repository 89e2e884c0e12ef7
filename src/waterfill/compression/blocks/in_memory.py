"""A network in memory, compressed block by block where its blocks are named or hold many weights."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.assignment import Assignment
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.blocks.measured import MeasuredStore
from waterfill.compression.blocks.run import MOST_BATCHES, Blockwise, Room
from waterfill.compression.blocks.source import source_in_memory
from waterfill.compression.options import AUTO_BLOCKS, NO_BLOCKS, Options
from waterfill.compression.steps.choice import with_choice
from waterfill.compression.store import MemoryStore
from waterfill.compression.task import Compression, in_memory, model_of, with_remark
from waterfill.errors import BadInput
from waterfill.model.compressed import CompressedModel
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.find import blocks_of
from waterfill.network.blocks.hidden import HiddenStates
from waterfill.network.running.batches import spread
from waterfill.network.running.forward import as_deployed
from waterfill.network.running.inputs import Inputs
from waterfill.storage.work_directory import temporary_folder

MANY = 1 << 26
"""Weights of a network from which on its blocks, if it has any, are compressed one by one."""


@torch.inference_mode(False)
def by_blocks(
    model: "nn.Module | Mapping[str, Tensor]",
    inputs: Inputs,
    recipe: Assignment,
    budget: Budget,
    how: tuple[Options, Mapping[str, Any]],
) -> CompressedModel | None:
    """The network to a budget, block by block; None where it is to be compressed as a whole.

    how: the options, and notes of the file. Warns where a large network cannot be taken block by block; raises BadInput
    where blocks that were named cannot, BudgetError.
    """
    (options, notes), named = how, how[0].blocks
    inputs.check(model)
    assert isinstance(model, nn.Module)
    if named == NO_BLOCKS or (named == AUTO_BLOCKS and sum(p.numel() for p in model.parameters()) < MANY):
        return None
    try:
        work = _prepared(model, inputs, recipe, (budget, options, notes))
    except BadInput as error:
        if named != AUTO_BLOCKS:
            raise
        warnings.warn(f"compressed as a whole, not block by block: {error}", stacklevel=4)
        return None
    with temporary_folder() as folder:
        store = MemoryStore()
        done = work.run(Room(HiddenStates(folder, options.memory), MeasuredStore(None), store))
        return with_remark(model_of(Compression(done.task, store, done.options)), work.allowed)


def _prepared(
    model: nn.Module, inputs: Inputs, recipe: Assignment, task: tuple[Budget, Options, Mapping[str, Any]]
) -> Blockwise:
    """The work on a network that was tested to be a chain of its blocks. Raises BadInput."""
    budget, options, notes = task
    check_runs(options)
    blocks = blocks_of(model, None if options.blocks == AUTO_BLOCKS else options.blocks)
    source = source_in_memory(model, blocks, recipe)
    source = replace(source, task=replace(source.task, weights=with_choice(source.task.weights)))
    chain = Chain(source.model, blocks, source.original, inputs.forward)
    with torch.no_grad(), as_deployed(source.model):
        chain.check(inputs.first)
    batches = list(spread(inputs.batches, MOST_BATCHES))
    settled = in_memory(source.task, options).options
    return Blockwise(source, chain, batches, budget, settled, dict(notes) | {"blocks": blocks.prefix})


def check_runs(options: Options) -> None:
    """Raise BadInput where the network is to run in a way that block by block nothing is counted for."""
    if options.runs is not None:
        raise BadInput(f"the memory of a network that runs {options.runs!r} is counted for the network as a whole")
