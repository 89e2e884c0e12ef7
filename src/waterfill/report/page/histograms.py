"""Weights before and after, as histograms, and their codes under the density that codes them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.codes.plan import Frequencies
from waterfill.part import Part
from waterfill.report.listing import Item
from waterfill.report.page.facts import Weight

BINS = 80
_MOST = 8  # weights that are shown
_SAMPLED = 1 << 18  # entries that a histogram is of
_REACH = 4.5  # standard deviations that a picture shows at most
_MOST_CODES = 65  # bars; of more codes several share one
_MOST_ENTRIES = 1 << 23  # of a weight whose codes are shown: larger ones take long to model


def chosen(items: Sequence[Item]) -> set[str]:
    """The weights of a file that are shown: those of the most bytes, but not all from one place."""
    known = [item for item in items if len(item.shape) > 1 and item.weights and item.entries <= _MOST_ENTRIES]
    largest = sorted(known, key=lambda item: -item.bytes)[: _MOST // 2]
    spread = known[:: max(1, len(known) // (_MOST // 2))]
    names = dict.fromkeys(item.name for item in [*largest, *spread])
    return set(list(names)[:_MOST])


def histogram(name: str, original: Tensor | None, restored: Tensor, parts: Sequence[Part]) -> Weight:
    """The picture of a weight."""
    pair = [_sampled(value) for value in (original, restored) if value is not None]
    first = pair[0]
    if not first.size:
        return Weight(name, [0.0, 1.0], [], [0.0])
    center, spread = float(first.mean()), float(first.std())
    reach = min(float(np.abs(first - center).max(initial=0.0)), _REACH * spread) or 1.0
    edges = np.linspace(center - reach, center + reach, BINS + 1)
    counts = [np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(1, values.size) for values in pair]
    before = counts[0].tolist() if original is not None else []
    role, codes = _codes(parts[0]) if parts else ("", None)
    shown = Weight(name, edges.tolist(), before, counts[-1].tolist())
    if codes is None:
        return shown
    low, found, expected = _few(codes)
    return Weight(name, shown.edges, before, shown.after, role, low, found, expected)


def _sampled(values: Tensor) -> np.ndarray:
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    flat = real.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // _SAMPLED)].float().numpy().astype(np.float64)
    return some[np.isfinite(some)]


def _codes(part: Part, role: str = "its codes") -> tuple[str, Frequencies | None]:
    """The codes of a part, or of the first part in it that has some, and what they are."""
    own = part.frequencies()
    if own is not None:
        return role, own
    for name, child in part.children().items():
        found = _codes(child, f"the codes of its {name}")
        if found[1] is not None:
            return found
    return "", None


def _few(codes: Frequencies) -> tuple[int, list[float], list[float]]:
    """Those codes that occur at all often: from the lowest to the highest of one in 5000."""
    total = max(1.0, float(codes.found.sum()))
    kept = np.flatnonzero(np.maximum(codes.found, codes.expected) > total / 5000)
    if not len(kept):
        return codes.low, [], []
    span = slice(kept[0], kept[-1] + 1)
    found, expected = codes.found[span] / total, codes.expected[span] / total
    middle = len(found) // 2
    if len(found) > _MOST_CODES:
        span = slice(max(0, middle - _MOST_CODES // 2), middle + _MOST_CODES // 2 + 1)
        return codes.low + int(kept[0]) + span.start, found[span].tolist(), expected[span].tolist()
    return codes.low + int(kept[0]), found.tolist(), expected.tolist()
