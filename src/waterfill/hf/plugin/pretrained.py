"""`from_pretrained` and `save_pretrained` of transformers for compressed folders.

transformers has no hook that gives a quantizer the weights of a file that is no `.safetensors`. So both methods of
`PreTrainedModel` are wrapped: a folder whose config names us is loaded by transformers' own method, with the tensors of
our file as its state dict; dtype, device map, renamed, fused and tied weights are its work, as always.
"""

import copy
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from waterfill.arithmetic import own_arithmetic
from waterfill.errors import BadInput, Mismatch
from waterfill.hf.folder import METHOD, WEIGHTS, check_compressed, is_compressed
from waterfill.hf.plugin.lazy import state_of
from waterfill.hf.plugin.packed import held_for, put_packed
from waterfill.hf.plugin.quantizer import Origin, WaterfillConfig, WaterfillQuantizer
from waterfill.hf.plugin.written import save
from waterfill.model.lazy import CompressedTensors
from waterfill.storage import FileReader

_SHOWN = 5


def register() -> None:
    """Teach transformers our folders, once."""
    if METHOD in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return
    register_quantization_config(METHOD)(WaterfillConfig)
    register_quantizer(METHOD)(WaterfillQuantizer)
    load, write = PreTrainedModel.from_pretrained.__func__, PreTrainedModel.save_pretrained

    @wraps(load)
    def from_pretrained(cls: Any, name: Any = None, *args: Any, **kwargs: Any) -> Any:
        name = kwargs.pop("pretrained_model_name_or_path", name)
        folder = None if name is None else Path(name) / (kwargs.get("subfolder") or "")
        if folder is None or kwargs.get("gguf_file") is not None or not is_compressed(folder):
            return load(cls, name, *args, **kwargs)
        with own_arithmetic():
            return _restored(cls, load, check_compressed(folder), args, kwargs)

    @wraps(write)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(getattr(self, "hf_quantizer", None), WaterfillQuantizer):
            return write(self, save_directory, *args, **kwargs)
        if kwargs.get("push_to_hub") or kwargs.get("state_dict") is not None:
            raise BadInput("a compressed model is saved as its file is: save it to a folder, then upload that")
        return save(self, save_directory)

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    PreTrainedModel.save_pretrained = save_pretrained


def _restored(cls: Any, load: Callable[..., Any], folder: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model of a folder. load: `from_pretrained` of transformers. Raises Mismatch, BadInput, CorruptFile."""
    wanted, told = _wanted(kwargs), kwargs.pop("output_loading_info", False)
    config, kwargs = _config(cls, folder, kwargs)
    for word in ("subfolder", "revision", "token", "cache_dir", "variant"):  # they say where the files are
        kwargs.pop(word, None)
    with FileReader(folder / WEIGHTS) as src:
        tensors = CompressedTensors(src)
        held = held_for(cls, copy.deepcopy(config), args, tensors) if wanted.packed else {}
        model, info = load(
            cls, None, *args, config=config, state_dict=state_of(tensors, held), output_loading_info=True, **kwargs
        )
        _check(info, cls, folder)
        if wanted.packed:
            put_packed(model, tensors, held, wanted.input_bits)
    model.hf_quantizer.packed = wanted.packed
    _told_where(model, folder, kwargs)
    model.hf_quantizer.origin = Origin.of(folder, model)
    return (model, info) if told else model


def _wanted(kwargs: dict[str, Any]) -> WaterfillConfig:
    """How the folder is to be loaded. Raises BadInput for a config of another kind, or a device map for layers that are
    packed."""
    wanted = kwargs.pop("quantization_config", None)
    wanted = WaterfillConfig() if wanted is None else wanted
    if isinstance(wanted, dict):
        wanted = WaterfillConfig(**wanted)
    if not isinstance(wanted, WaterfillConfig):
        raise BadInput(
            f"the folder is compressed by waterfill, and quantization_config= is a {type(wanted).__name__}; leave it "
            "out, or give a waterfill.hf.plugin.quantizer.WaterfillConfig"
        )
    if wanted.packed and kwargs.get("device_map") not in (None, "cpu", {"": "cpu"}):
        raise BadInput("a packed network is loaded on the CPU: leave device_map= out, and move the model afterwards")
    return wanted


def _config(cls: Any, folder: Path, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config that was given or lies in the folder, and the keywords that do not belong to it."""
    config = kwargs.pop("config", None)
    if config is None or isinstance(config, str | Path):
        own = {name: kwargs.pop(name) for name in _NOT_OF_CONFIG if name in kwargs}
        config, kwargs = cls.config_class.from_pretrained(config or folder, return_unused_kwargs=True, **kwargs)
        kwargs = kwargs | own
    config = copy.deepcopy(config)
    config.quantization_config = {"quant_method": METHOD}
    return config, kwargs


_NOT_OF_CONFIG = ("dtype", "torch_dtype", "device_map", "generation_config")
"""Keywords of `from_pretrained` that a config would take for its own."""


def _check(info: dict[str, Any], cls: Any, folder: Path) -> None:
    """Raises Mismatch where a weight of the model is not in the file: it would be random."""
    wrong = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if wrong or info["error_msgs"]:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        what = f"{', '.join(wrong[:_SHOWN])}{more}" if wrong else info["error_msgs"][0]
        raise Mismatch(
            f"{folder / WEIGHTS} does not fit a {cls.__name__}: it lacks, or has in another shape, {what}. Load the "
            "class that the config names (waterfill.hf.load), then move what you need into yours"
        )


def _told_where(model: Any, folder: Path, kwargs: dict[str, Any]) -> None:
    """Give the model what transformers itself reads from the folder of its weights."""
    model.config.name_or_path = model.name_or_path = str(folder)
    if (
        kwargs.get("generation_config") is None
        and model.can_generate()
        and (folder / "generation_config.json").exists()
    ):
        model.generation_config = GenerationConfig.from_pretrained(folder)
