"""Work that processes share: each does a part of it, and all have the whole in the end."""

from collections.abc import Callable, Sequence

import torch.distributed as dist

from waterfill.errors import WaterfillError


def shared(names: Sequence[str], make: Callable[[str], bytes]) -> dict[str, bytes]:
    """make(name) of every name, in their order; where processes work together, each makes its share of them.

    names: the same in every process, the longest work first.

    Raises:
        WaterfillError: what `make` raised, in every process, whichever of them it was in.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return {name: make(name) for name in names}
    ranks = dist.get_world_size()
    made: dict[str, bytes] | WaterfillError
    try:
        made = {name: make(name) for name in names[dist.get_rank() :: ranks]}
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
