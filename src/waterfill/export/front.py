"""`export`: one front door to all formats."""

import importlib
from pathlib import Path
from typing import Protocol

from waterfill.errors import BadInput
from waterfill.export.how import How, Network
from waterfill.export.result import Exported
from waterfill.export.source import Source, opened
from waterfill.model.compressed import CompressedModel
from waterfill.part import Part

FORMATS = {
    "safetensors": "waterfill.export.folder",
    "onnx": "waterfill.export.onnx.write",
    "openvino": "waterfill.export.openvino.write",
    "gguf": "waterfill.export.gguf.write",
    "compressed-tensors": "waterfill.export.compressed_tensors",
}
"""By the name of each format the module that writes it."""


class Format(Protocol):
    """What the module of a format gives."""

    NAME: str

    @staticmethod
    def can(part: Part) -> str | None:
        """Why the format cannot hold a part as it is; None if it can."""

    @staticmethod
    def write(source: Source, target: "str | Path", network: Network | None, how: How) -> Exported:
        """Write the whole network."""
        ...


def format_named(name: str) -> Format:
    """The module of a format. Raises BadInput."""
    if name not in FORMATS:
        raise BadInput(f"{name!r} is no format to export to; there are {', '.join(FORMATS)}")
    module: Format = importlib.import_module(FORMATS[name])  # type: ignore[assignment]  # modules keep the protocol
    return module


def export(
    source: "CompressedModel | str | Path",
    target: "str | Path",
    to: str,
    network: Network | None = None,
    how: How = How(),
) -> Exported:
    """Write a compressed network in the format of another tool.

    Args:
        source: a `.wf` file, a compressed folder of a transformers model, or a network in memory.
        target: the file or the folder to write.
        to: "safetensors", "onnx", "compressed-tensors", "gguf" or "openvino".
        network: the network and its inputs, for formats that hold what a network computes (ONNX, OpenVINO).
        how: what else is asked for.

    Returns:
        What was written: a row for each tensor, bytes, and how far the outputs are from those in PyTorch.

    Raises:
        CannotExport: a part or an operator that the format does not have; a library that is missing, by name.
        BadInput: no such format, or no network where one is needed.
        OutputExists: the target is there, and `how.force` is not set.
        Mismatch: a network that the file does not fit.
        CorruptFile, NewerFormat, OSError: of the files.

    Example:
        >>> export("net.wf", "net.onnx", "onnx", network=Network(Net(), inputs.split(32)))
    """
    chosen = format_named(to)
    with opened(source) as found:
        return chosen.write(found, target, network, how)
