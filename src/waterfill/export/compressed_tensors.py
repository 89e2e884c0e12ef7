"""compressed-tensors, `pack-quantized`: folders of transformers models for vLLM, which transformers reads too.

A linear layer X is X.weight_packed (int32 [out, in · bits / 32]: codes plus 2^(bits - 1), densely, low bits first),
X.weight_scale [out, groups] and X.weight_shape (int64 [2]); everything else stays dense.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from waterfill.dtypes import dtype_name
from waterfill.errors import BadInput
from waterfill.export.folder import Held, dense_slot, dtype_named, write_beside, write_shards
from waterfill.export.how import How, Network, asked_requantize
from waterfill.export.place import check_folder, new_folder
from waterfill.export.requantize import relative_error, requantized
from waterfill.export.result import Exported, Row
from waterfill.export.safetensors import Slot
from waterfill.export.source import Source
from waterfill.network.layout import MATRIX
from waterfill.part import Codes, Part, Whole

NAME = "compressed-tensors"
_MOST_BITS = 8
_TABLES = ("embed", "wte", "wpe", "shared", "lm_head", "embed_out")
_EXPERTS = ".experts."  # linear layers on disk, and in a model a tensor of all of them
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that runtimes put together, and which therefore need the same bits."""


@dataclass(frozen=True)
class Scheme:
    """bits of a code, and the columns that share a scale, 0 for a whole row."""

    bits: int
    group: int

    def as_config(self, targets: list[str]) -> dict[str, Any]:
        """The group of a config that has this scheme."""
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False}
        weights |= {"strategy": "group", "group_size": self.group} if self.group else {"strategy": "channel"}
        none = {"input_activations": None, "output_activations": None}
        return {"targets": targets, "weights": weights, "format": "pack-quantized"} | none


def can(part: Part) -> str | None:
    """Why a part is not held as packed integers; None if it is, or if it is dense already."""
    product = part.product()
    if isinstance(product, Whole):
        return None
    if not isinstance(product, Codes):
        return "no codes with scales"
    return _why_not(product)


def _why_not(codes: Codes) -> str | None:
    cols = codes.codes.shape[1]
    reasons = (
        (codes.columns is not None, "scales of columns"),
        (codes.zeros is not None, "zero points"),
        (_bits(codes) > _MOST_BITS, "codes beyond 8 bits"),
        (
            codes.scales.shape[1] > 1 and bool(cols % codes.group),
            f"groups of {codes.group}, of which {cols} is no multiple",
        ),
    )
    return next((reason for is_so, reason in reasons if is_so), None)


def write(source: Source, target: "str | Path", network: Network | None, how: How) -> Exported:
    """Write the folder. Raises CannotExport, BadInput, OutputExists, CorruptFile, OSError."""
    check_folder(target, how.force, source.folder)
    dtype = dtype_named(how.dtype)
    if source.folder is None:
        raise BadInput(
            f"{NAME} is a format of transformers models: give the folder that `waterfill compress FOLDER -o OUT` made"
        )
    from waterfill.hf.original import linear_weights

    linear = linear_weights(source.folder)
    parts, losses = _linear(source, how, linear)
    schemes = _schemes(parts)
    helds: list[Held] = []
    rows: list[Row] = []
    for name in source.owners:
        if name in schemes:
            scale = dtype or source.layouts[source.owners[name]].dtype
            made = _packed(name.removesuffix(".weight"), parts[name], schemes[name], scale)
            loss = losses.get(name) or _rounding(parts[name], scale)
            form = f"{schemes[name].bits}-bit codes, scales in {dtype_name(scale)}"
            rows.append(Row(name, form, sum(held.slot.bytes for held in made), "", loss))
        else:
            made = [dense_slot(name, source, dtype)]
            rows.append(Row(name, f"dense, {dtype_name(made[0].slot.dtype)}", made[0].slot.bytes, _why(name, source)))
        helds += made
    with new_folder(target, how.force, source.folder) as folder:
        size = write_shards(folder, helds, how.shard)
        write_beside(folder, source, _config(source, schemes, linear), dtype)
    return Exported(Path(os.fspath(target)), NAME, size, rows)


def _linear(source: Source, how: How, linear: Mapping[str, bool]) -> tuple[dict[str, Codes], dict[str, float]]:
    """The codes of linear layers by name, and what rounding them once more lost. Raises CannotExport.

    linear: as `linear_weights` gives them: beside experts, what reads these folders packs only such as are not shared.
    """
    found: dict[str, Codes] = {}
    losses: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, own in source.owners.items():
        layout = source.layouts[own]
        if layout.role != MATRIX or layout.dtype.is_complex or _is_table(name) or not name.endswith(".weight"):
            continue
        if not linear.get(name, _EXPERTS in name):
            continue
        part = source.entry(own).parts[0]
        reason = can(part)
        if reason and how.requantize is not None:
            part, losses[name] = requantized(part, how.requantize, how.group)
            reason = can(part)
        if reason:
            reasons[name] = reason
        product = part.product()
        if isinstance(product, Codes):
            found[name] = product
    if reasons:
        raise asked_requantize(reasons, NAME)
    return found, losses


def _schemes(parts: dict[str, Codes]) -> dict[str, Scheme]:
    """The scheme of each weight; those that are put together later have the bits of the widest of them."""
    own = {name: Scheme(_bits(codes), codes.group if codes.scales.shape[1] > 1 else 0) for name, codes in parts.items()}
    made: dict[str, Scheme] = {}
    for name, scheme in own.items():
        siblings = [name.replace(one, other) for fused in _FUSED for one in fused if one in name for other in fused]
        made[name] = Scheme(max([scheme.bits, *(own[each].bits for each in siblings if each in own)]), scheme.group)
    return made


def _config(source: Source, schemes: dict[str, Scheme], linear: Iterable[str]) -> dict[str, Any]:
    modules: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        modules.setdefault(scheme, []).append(name.removesuffix(".weight"))
    alone = len(modules) == 1
    groups = {
        f"group_{number}": scheme.as_config(["Linear"] if alone else names)
        for number, (scheme, names) in enumerate(modules.items())
    }
    matrices = [name for name, own in source.owners.items() if source.layouts[own].role == MATRIX]
    left = [name for name in (*matrices, *linear) if name not in schemes and "embed" not in name]  # tied: in no file
    ignored = list(dict.fromkeys([*(name.removesuffix(".weight") for name in left), "lm_head"]))
    config = {"quant_method": NAME, "format": "pack-quantized", "quantization_status": "compressed"}
    return config | {"config_groups": groups, "ignore": ignored, "kv_cache_scheme": None}


def _packed(module: str, codes: Codes, scheme: Scheme, scale: torch.dtype) -> list[Held]:
    """The tensors of a linear layer, made when their turn comes."""
    rows, cols = codes.codes.shape
    shape = torch.tensor([rows, cols], dtype=torch.int64, device="cpu")
    words = -(-cols * scheme.bits // 32)
    made: list[tuple[str, tuple[int, ...], torch.dtype, Callable[[], Tensor]]] = [
        ("weight_packed", (rows, words), torch.int32, lambda: packed(codes.codes.numpy(), scheme.bits)),
        ("weight_scale", tuple(codes.scales.shape), scale, lambda: codes.scales.to(scale)),
        ("weight_shape", (2,), torch.int64, lambda: shape),
    ]
    return [Held(Slot(f"{module}.{key}", size, dtype, module), make) for key, size, dtype, make in made]


def packed(codes: np.ndarray, bits: int) -> Tensor:
    """Codes [rows, cols], plus 2^(bits - 1), behind one another in words of 32 bits, [rows, words] (int32)."""
    rows, cols = codes.shape
    stored = (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
    apart = np.unpackbits(stored[..., None], axis=2, bitorder="little")[:, :, :bits].reshape(rows, cols * bits)
    padded = np.pad(apart, ((0, 0), (0, -(cols * bits) % 32)))
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view("<i4").astype(np.int32))


def _bits(codes: Codes) -> int:
    """The fewest bits that hold all codes."""
    least, most = (int(edge) for edge in codes.codes.aminmax()) if codes.codes.numel() else (0, 0)
    return 1 + max((-least - 1).bit_length() if least < 0 else 0, most.bit_length())


def _rounding(codes: Codes, dtype: torch.dtype) -> float:
    """What a narrower type of the scales loses."""
    return relative_error(codes.scales.to(dtype).float(), codes.scales)


def _is_table(name: str) -> bool:
    return any(word in name for word in _TABLES)


def _why(name: str, source: Source) -> str:
    is_matrix = source.layouts[source.owners[name]].role == MATRIX
    if not is_matrix:
        return ""
    return "an embedding or an output layer" if _is_table(name) else "no linear layer of its own"
