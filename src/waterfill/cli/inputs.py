"""Calibration inputs and models named in text, as on a command line: `module:function`, a `.npy` or a `.npz` file."""

import difflib
import importlib
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.cli.exit_codes import UsageError
from waterfill.errors import BadInput
from waterfill.storage.paths import check_source

BATCH = 32
"""Samples in a batch of an array."""
_NAMES = ("inputs", "x", "images")
_BATCHES = "batches"
_TARGETS = ("targets", "labels", "y")


@dataclass(frozen=True)
class Inputs:
    """Batches to calibrate with, and the model where the function that made them gave one too."""

    model: nn.Module | None
    batches: Iterable[Any]


def load_inputs(text: str, model: nn.Module | None = None, targets: bool = False) -> Inputs:
    """The batches that a text names.

    `module:function` imports the module, the current folder included, and calls the function; it returns an iterable of
    batches, or (model, batches). A `.npy` holds inputs, samples along the first axis; of a `.npz` the only array is
    taken, or the one named "inputs", "x" or "images". Integers become int64 and reals float32, in batches of 32.
    targets: batches are (inputs, targets) where a `.npz` holds "targets", "labels" or "y" too, as many of them.
    model: what `Inputs.model` is where the function gives none. Raises BadInput.
    """
    if text.lower().endswith((".npy", ".npz")):
        return Inputs(model, array_batches(Path(text), targets))
    returned = _call(text, _BATCHES)
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], nn.Module):
        model, returned = returned
    if isinstance(returned, Tensor):
        returned = returned.split(BATCH)
    if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | Mapping | nn.Module):
        raise BadInput(
            f"{text} returned {_kind(returned)}; return an iterable of batches, such as a list of tensors or a loader, "
            "or a pair (model, batches)"
        )
    return Inputs(model, returned)


def load_model(text: str) -> nn.Module:
    """The model that `module:function` returns. Raises BadInput."""
    returned = _call(text, "a model")
    if isinstance(returned, tuple) and returned and isinstance(returned[0], nn.Module):
        returned = returned[0]
    if not isinstance(returned, nn.Module):
        raise BadInput(f"{text} returned {_kind(returned)}; return a torch.nn.Module with its weights loaded")
    return returned


def array_batches(path: Path, targets: bool = False) -> list[Any]:
    """The samples of an array file in batches of 32, with their targets if these are wanted. Raises BadInput."""
    check_source(path)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = _chosen(loaded, path, targets) if isinstance(loaded, np.lib.npyio.NpzFile) else [loaded]
    except FileNotFoundError as error:
        raise BadInput(f"{path} is not there") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is no array that numpy can read without pickle: {error}") from error
    if len({array.shape[:1] for array in arrays}) > 1:
        counts = " and ".join(str(list(array.shape)) for array in arrays)
        raise BadInput(f"{path} holds inputs and targets of shapes {counts}; give one target for each input")
    batches = [_batches(array, path) for array in arrays]
    return batches[0] if len(batches) == 1 else list(zip(*batches, strict=True))


def _batches(array: np.ndarray, path: Path) -> list[Tensor]:
    """An array in batches of 32. Raises BadInput for one without samples, or of what is no number."""
    if array.ndim < 1 or array.size == 0:
        raise BadInput(f"{path} holds an array of shape {list(array.shape)}: no samples, which the first axis counts")
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{path} holds {array.dtype}; give real numbers or integers")
    kind = np.float32 if array.dtype.kind == "f" else np.int64
    with np.errstate(over="ignore"):
        return list(torch.from_numpy(np.array(array, dtype=kind, order="C")).split(BATCH))


def _chosen(archive: "np.lib.npyio.NpzFile", path: Path, targets: bool) -> list[np.ndarray]:
    """The inputs among the arrays of an archive, and their targets if these are wanted and there."""
    with archive:
        named = [name for name in _NAMES if name in archive.files]
        chosen = archive.files if len(archive.files) == 1 else named
        if len(chosen) != 1:
            held = f"the arrays {', '.join(archive.files)}" if archive.files else "no arrays"
            raise BadInput(f"{path} holds {held}; give one array, or name the inputs {' or '.join(_NAMES)}")
        chosen = [*chosen, *[name for name in _TARGETS if targets and name in archive.files][:1]]
        return [archive[name] for name in chosen]


def _call(text: str, what: str) -> Any:
    """The result of the function of `module:function`. Raises UsageError where there is none, BadInput where
    it or its module fails, its own error chained."""
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        file = ", or the path of a .npy or .npz of inputs" if what == _BATCHES else ""
        raise UsageError(f"{text!r} does not name {what}: give module:function{file}")
    with _reachable():
        try:
            loaded: Any = importlib.import_module(module.removesuffix(".py").replace("/", "."))
        except Exception as error:
            words = f"module {module!r} of {text!r} cannot be imported: {_said(error)}"
            if _lacks(error, module):
                raise UsageError(f"{words}; it is looked for in the current folder, then as Python does") from error
            raise BadInput(words) from error
        function = loaded
        for part in name.split("."):
            function = getattr(function, part, None)
        if not callable(function):
            near = difflib.get_close_matches(name, [key for key, value in vars(loaded).items() if callable(value)])
            raise UsageError(f"module {module!r} has no function {name!r}{f'; is it {near[0]!r}?' if near else ''}")
        try:
            return function()
        except Exception as error:
            raise BadInput(f"{text} failed: {_said(error)}") from error


def _lacks(error: Exception, module: str) -> bool:
    """Whether the module itself is what is not there, not one that it imports."""
    return isinstance(error, ModuleNotFoundError) and bool(error.name) and module.startswith(str(error.name))


@contextmanager
def _reachable() -> Iterator[None]:
    """The current folder among those that modules are imported from."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
