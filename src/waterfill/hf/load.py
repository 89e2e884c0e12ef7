"""`load` and `save`: the model of a compressed folder, and a folder of it again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from waterfill.hf.folder import check_compressed
from waterfill.hf.original import class_of, transformers
from waterfill.hf.plugin.written import save
from waterfill.runtime.pack import input_bytes

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load", "save"]


def load(
    folder: "str | Path", *, packed: bool = False, dtype: Any = None, input_bits: int = 16, **options: Any
) -> "nn.Module":
    """The model of a compressed folder, of the class that its config names, in evaluation mode.

    It is built without memory for its weights, which are then decoded one by one: nothing is random on the way.

    Args:
        folder: as `compress_folder` wrote it.
        packed: whether its layers run from the compressed weights, as of `waterfill.pack`.
        dtype: of the model, such as torch.bfloat16; None for the config's.
        input_bits: as of `waterfill.pack`.
        options: further arguments of transformers' `from_pretrained`.

    Returns:
        The model. `save_pretrained` writes the same compressed folder again; `dequantize()` makes a dense one an
        ordinary model, which learns and is saved plainly.

    Raises:
        BadInput: no compressed folder, an architecture that transformers does not have, transformers missing.
        Mismatch: a file that does not fit the config.
        CorruptFile, NewerFormat: of the file.

    Example:
        >>> model = waterfill.hf.load("SmolLM2-135M-3bit", packed=True)
    """
    transformers()
    path = check_compressed(folder)
    input_bytes(input_bits)
    from waterfill.hf.plugin.quantizer import WaterfillConfig

    how = WaterfillConfig(packed=packed, input_bits=input_bits)
    model: nn.Module = class_of(path).from_pretrained(
        path, quantization_config=how, dtype="auto" if dtype is None else dtype, **options
    )
    return model
