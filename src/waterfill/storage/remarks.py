"""Warnings of a compressed network as a whole, from the notes of its file."""

from collections.abc import Mapping
from typing import Any

FEW_SAMPLES = 16
RANDOM, UNSTEADY, UNUSED, UNTRAINED = "random", "unsteady", "unused", "untrained"
_TEXTS = {
    RANDOM: "outputs depend on random numbers: networks were compared at equal ones",
    UNSTEADY: "two runs of one batch gave different outputs: weights were not fitted to what the compressed layers "
    "before them give, nor repaired, as both compare runs",
    UNUSED: "the inputs made the outputs of others worse than none would: the file was made without them",
    UNTRAINED: "training made the outputs worse: the file holds the network as it was compressed before; train longer, "
    "or at another rate",
}
_FEW = "few samples: {} outputs were seen, and what errors cost is in part assumed; a few hundred tell more"


def warning_in(notes: Mapping[str, Any]) -> str:
    """The remarks in words; empty for none, and for notes that no writer would have written."""
    remarks, samples = notes.get("remarks"), notes.get("samples")
    texts = [text for word, text in _TEXTS.items() if word in remarks] if isinstance(remarks, list) else []
    if type(samples) is int and 0 < samples < FEW_SAMPLES:
        texts.append(_FEW.format(samples))
    return "; ".join(texts)
