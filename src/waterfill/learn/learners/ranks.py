"""Work that processes share: each does a part of it, or the first does it, and all have the whole in the end."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from waterfill.errors import WaterfillError

_T = TypeVar("_T")


def rank_and_ranks() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def by_first(make: Callable[[], _T]) -> _T:
    """make() in the first process, and what it returned in all; it can be pickled.

    Raises:
        WaterfillError: what `make` raised, in every process.
    """
    rank, ranks = rank_and_ranks()
    if ranks == 1:
        return make()
    found: list[Any] = [None]
    if rank == 0:
        try:
            found = [make()]
        except WaterfillError as error:
            found = [error]
    dist.broadcast_object_list(found)
    if isinstance(found[0], WaterfillError):
        raise found[0]
    made: _T = found[0]
    return made


def shared(names: Sequence[str], make: Callable[[str], bytes]) -> dict[str, bytes]:
    """make(name) of every name, in their order; where processes work together, each makes its share of them.

    names: the same in every process, the longest work first.

    Raises:
        WaterfillError: what `make` raised, in every process, whichever of them it was in.
    """
    rank, ranks = rank_and_ranks()
    if ranks == 1:
        return {name: make(name) for name in names}
    made: dict[str, bytes] | WaterfillError
    try:
        made = {name: make(name) for name in names[rank::ranks]}
    except WaterfillError as error:
        made = error
    everything: list[dict[str, bytes] | WaterfillError] = [{}] * ranks
    dist.all_gather_object(everything, made)
    found: dict[str, bytes] = {}
    for share in everything:
        if isinstance(share, WaterfillError):
            raise share
        found |= share
    return {name: found[name] for name in names}
