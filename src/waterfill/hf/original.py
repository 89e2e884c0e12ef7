"""The model and the tokenizer of a folder by the classes of transformers that its config names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from waterfill.errors import BadInput
from waterfill.hf.folder import read_config


def transformers() -> Any:
    """The library. Raises BadInput, naming the extra, where it is not installed."""
    try:
        import transformers as library
    except ImportError as error:
        raise BadInput(f'this needs transformers ({error}): pip install "waterfill[hf]"') from error
    return library


def class_of(folder: "str | Path") -> Any:
    """The class that `architectures` of a folder's config names. Raises BadInput."""
    library, config = transformers(), read_config(folder)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise BadInput(
            f"the config of {folder} names no architectures; load it with a class of yours, such as "
            "transformers.AutoModelForCausalLM.from_pretrained, after `import waterfill.hf`"
        )
    found = getattr(library, names[0], None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        own = " (its code lies with the model)" if "auto_map" in config else ""
        raise BadInput(
            f"transformers {library.__version__} has no class {names[0]!r}{own}, which the config of {folder} names; "
            "use a release that has it, or load it with a class of yours after `import waterfill.hf`"
        )
    return found


def original_model(folder: "str | Path") -> "nn.Module":
    """The model of a folder that is not compressed, in float32, ready to be run. Raises BadInput."""
    try:
        model: nn.Module = class_of(folder).from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"transformers cannot load {folder}: {error}") from error
    return without_cache(model)


def original_tokenizer(folder: "str | Path") -> Any:
    """The tokenizer that lies in a folder. Raises BadInput."""
    library = transformers()
    try:
        return library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        line = " ".join(str(error).split())[:300]
        raise BadInput(f"transformers finds no tokenizer in {folder}, which a text needs: {line}") from error


def without_cache(model: "nn.Module") -> "nn.Module":
    """A model that keeps nothing of what it has read for a next token: there is none."""
    config: Any = model.config
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return model.eval()


def structure_of(folder: Path) -> nn.Module:
    """The model of a folder without memory for its parameters; buffers are computed as ever. Raises BadInput."""
    library, kind = transformers(), class_of(folder)
    try:
        config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
        with _without_parameters():
            model: nn.Module = kind(config)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise BadInput(f"transformers cannot build the model of {folder}: {error}") from error
    return without_cache(model).requires_grad_(False)


def linear_weights(folder: Path) -> dict[str, bool]:
    """The names of the weights of plain linear layers of the model of a folder, and whether one layer alone has it.

    Raises BadInput.
    """
    model = structure_of(folder)
    shared = {name for group in tied_names(model) for name in group}
    plain = [f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Linear]
    return {name: name not in shared for name in plain}


@contextmanager
def _without_parameters() -> Iterator[None]:
    """A block of code in which modules put their parameters on the meta device."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def tied_names(model: nn.Module) -> list[list[str]]:
    """The names of parameters that are one and the same."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
