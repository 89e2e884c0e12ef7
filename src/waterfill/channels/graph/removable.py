"""Which families can go: each is tried. Where code counts on a number that the module holds, that number goes along."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import torch

from waterfill.channels.graph.cut import failing, problem
from waterfill.channels.graph.groups import Family
from waterfill.channels.graph.network import Network

_MOST_NUMBERS = 3
"""Of a module that may have to change together, such as its heads and those of its keys."""
_MOST_TRIES = 40


def halves(families: Iterable[Family], seed: int = 0) -> dict[Family, list[int]]:
    """A choice of about half of the groups of each family, at random."""
    generator = torch.Generator("cpu").manual_seed(seed)
    some = {}
    for family in families:
        count = len(family.groups)
        order = torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")
        some[family] = sorted(order[: max(1, count // 2)].tolist())
    return some


def removable(network: Network, families: Sequence[Family]) -> list[Family]:
    """The families, those that turn out not to be removable with the reason."""
    tried = halves(family for family in families if not family.reason)
    found = failing(network, tried)
    known: list[tuple[str, ...]] = []
    made = []
    for family in families:
        others = [family, *_paired(family)] if family in found else []
        other = next((fits for one in others if (fits := _with_numbers(network, one, known)) is not None), family)
        made.append(family.refused(found[family]) if family in found and other is family else other)
    again = failing(network, halves(family for family in made if not family.reason)) if known else {}
    return [family.refused(again[family]) if family in again else family for family in made]


def _paired(family: Family) -> list[Family]:
    """The family in pairs of groups, one of its first half and one of its second: code that pads or cuts both ends of
    the channels wants as many of either to go."""
    half, odd = divmod(len(family.groups), 2)
    if odd or half < 2:
        return []
    pairs = zip(family.groups[:half], family.groups[half:], strict=True)
    return [Family(tuple({node: torch.cat([a[node], b[node]]) for node in a} for a, b in pairs))]


def _with_numbers(network: Network, family: Family, known: list[tuple[str, ...]]) -> Family | None:
    """A family that can go if some whole numbers among the attributes of the modules around its layers go with it, such
    as a number of heads; None if there are none.

    known: keys of attributes that have helped before, which are tried first.
    """
    numbers = halves([family])[family]
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in family.layers):
        held = vars(network.model.get_submodule(owner))
        keys = [key for key, value in held.items() if _counts(value, len(family.groups)) and not key.startswith("_")]
        some = [chosen for count in range(1, _MOST_NUMBERS + 1) for chosen in combinations(keys, count)]
        first = [chosen for chosen in known if set(chosen) <= set(keys)]
        for chosen in list(dict.fromkeys([*first, *some]))[:_MOST_TRIES]:
            other = Family(family.groups, attributes=tuple((owner, key) for key in chosen))
            if not problem(network, {other: numbers}):
                known += [] if chosen in known else [chosen]
                return other
    return None


def _counts(value: object, groups: int) -> bool:
    """Whether an attribute may count groups, or so many of something for each."""
    return type(value) is int and value > 0 and value % groups == 0
