"""A compressed network as two files of OpenVINO: NAME.xml, the network, and NAME.bin, its weights."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from waterfill.errors import BadInput, CannotExport
from waterfill.export.how import How, Network, extra
from waterfill.export.onnx.trace import inputs_of, traced
from waterfill.export.onnx.write import installed
from waterfill.export.openvino.constants import Constants
from waterfill.export.openvino.rewrite import rewrite, unfit
from waterfill.export.requantize import entries_of, relative_error
from waterfill.export.result import Exported, Row
from waterfill.export.source import Source
from waterfill.network.running.forward import as_deployed, call
from waterfill.part import Part
from waterfill.storage.atomic import claimed, sync_folder
from waterfill.storage.paths import check_target

NAME = "openvino"


def can(part: Part) -> str | None:
    """Why a part is not multiplied from its small form; it is restored as the file is compiled then, and runs dense."""
    return unfit(part.product())


def write(source: Source, target: "str | Path", network: Network | None, how: How) -> Exported:
    """Write both files. Raises BadInput, CannotExport, Mismatch, OutputExists, CorruptFile, OSError."""
    place = Path(target)
    if place.suffix != ".xml":
        raise BadInput(f"{target}: a file of OpenVINO ends in .xml, and its weights go beside it in a .bin")
    for path in (place, place.with_suffix(".bin")):
        check_target(path, how.force)
    library = extra("openvino", "an export to OpenVINO")
    extra("onnx", "an export to OpenVINO")
    model, batch = installed(source, network, NAME)
    made = library.Core().read_model(traced(model, batch).SerializeToString())
    entries, losses = entries_of(source, how, unfit)
    constants = Constants()
    rows = rewrite(constants, made, entries)
    rows = [Row(row.name, row.form, row.bytes, row.why, losses.get(row.name, 0.0)) for row in rows]
    with _in_place(place, how.force) as temporary:
        library.save_model(made, os.fspath(temporary), compress_to_fp16=False)
        with as_deployed(model):
            wanted = call(model, batch)
        found = relative_error(run(temporary, inputs_of(batch)), wanted)
    size = sum(path.stat().st_size for path in (place, place.with_suffix(".bin")))
    return Exported(place, NAME, size, rows, found)


def run(path: "str | Path", inputs: list[Tensor], **settings: Any) -> Tensor:
    """The first outputs of a file for some inputs, in float32, on the processor. Raises CannotExport."""
    library = extra("openvino", "running a file of OpenVINO")
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": 1}
    try:
        compiled = library.Core().compile_model(os.fspath(path), "CPU", exact | settings)
        return torch.from_numpy(compiled([value.detach().cpu().numpy() for value in inputs])[0].copy())
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise CannotExport(f"OpenVINO {library.__version__} cannot run {path}: {line}") from error


@contextlib.contextmanager
def _in_place(place: Path, force: bool) -> Iterator[Path]:
    """A block that writes both files beside their places, to which they go when it ends without an error."""
    weights = place.with_suffix(".bin")
    with claimed(place), claimed(weights):
        folder = Path(tempfile.mkdtemp(prefix=".waterfill-", dir=place.resolve().parent))
        try:
            yield folder / place.name
            for path in folder.iterdir():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            for path in (weights, place):
                check_target(path, force)
            os.replace(folder / weights.name, weights)
            os.replace(folder / place.name, place)
            sync_folder(place.resolve().parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
