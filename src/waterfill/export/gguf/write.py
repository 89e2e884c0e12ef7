"""A compressed folder of a transformers model as a file of GGUF."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from waterfill.errors import BadInput
from waterfill.export.gguf.blocks import blocks_of, why_not
from waterfill.export.gguf.llama import Sizes, renamed
from waterfill.export.gguf.tokenizer import Vocabulary, vocabulary
from waterfill.export.how import How, Network, asked_requantize, extra
from waterfill.export.requantize import relative_error, requantized
from waterfill.export.result import Exported, Row
from waterfill.export.source import Source
from waterfill.network.layout import MATRIX
from waterfill.part import Codes, Part, Whole
from waterfill.storage.atomic import AtomicFile
from waterfill.storage.paths import check_target

NAME = "gguf"


def can(part: Part) -> str | None:
    """Why a part is not held in blocks of codes; None if it is, or if it is dense already."""
    product = part.product()
    if isinstance(product, Whole):
        return None
    return why_not(product) if isinstance(product, Codes) else "no codes with scales"


@dataclass(frozen=True)
class _Held:
    """A tensor as it will lie in the file: the name of its type, and its array."""

    type: str
    array: np.ndarray
    loss: float


def write(source: Source, target: "str | Path", network: Network | None, how: How) -> Exported:
    """Write the file. Raises CannotExport, BadInput, OutputExists, CorruptFile, OSError."""
    check_target(target, how.force)
    if source.folder is None:
        raise BadInput(
            f"{NAME} holds a model with its tokenizer: give the folder that `waterfill compress FOLDER` made"
        )
    library = extra("gguf", "an export to GGUF")
    from waterfill.hf.folder import read_config

    config = read_config(source.folder)
    sizes, words = Sizes(config), vocabulary(source.folder, int(config.get("vocab_size", 0)))
    names = {name: renamed(name) for name in source.owners if not _is_twin(name, source, config)}
    _check(source, names, how)
    rows = []
    with AtomicFile(os.fspath(target), force=how.force) as out:
        writer = library.GGUFWriter(None, "llama")
        kinds: Counter[str] = Counter()
        for (
            name,
            other,
        ) in names.items():  # once for its place, and once more below for its bytes: one in memory at a time
            held = _held(source, name, sizes, how)
            kinds[held.type] += held.array.size
            raw = getattr(library.GGMLQuantizationType, held.type)
            writer.add_tensor_info(other, held.array.shape, held.array.dtype, held.array.nbytes, raw)
            rows.append(Row(name, held.type, held.array.nbytes, "", held.loss))
        _describe(writer, library, (source.folder.name, kinds.most_common(1)[0][0]), config, words)
        sizes.describe(writer)
        writer.write_header_to_file(Path(out.temporary))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            writer.write_tensor_data(_held(source, name, sizes, how).array)
        writer.close()
        return Exported(Path(target), NAME, out.finish(), rows)


def _is_twin(name: str, source: Source, config: dict[str, Any]) -> bool:
    """Whether an output layer is the embedding, which llama.cpp takes where there is none."""
    tied = name in source.aliases or bool(config.get("tie_word_embeddings"))
    return name == "lm_head.weight" and tied


def _check(source: Source, names: dict[str, str], how: How) -> None:
    """Raises CannotExport for what the blocks do not hold, unless it is to be rounded once more."""
    reasons = {}
    for name in names:
        layout = source.layouts[source.owners[name]]
        if layout.role == MATRIX and (why := can(source.entry(source.owners[name]).parts[0])):
            reasons[name] = why
    if reasons and how.requantize is None:
        raise asked_requantize(reasons, NAME)


def _held(source: Source, name: str, sizes: Sizes, how: How) -> _Held:
    """A tensor in the form of the file."""
    entry = source.entry(source.owners[name])
    order = sizes.order(name, entry.layout.shape[0])
    if entry.layout.role != MATRIX:  # vectors, and whatever is kept bit for bit
        exact = entry.tensor().float().numpy()
        return _Held("F32", exact if order is None else exact[order], 0.0)
    part, loss = entry.parts[0], 0.0
    if can(part) and how.requantize is not None:
        part, loss = requantized(part, how.requantize, max(how.group - how.group % 32, 32))
    product = part.product()
    if isinstance(product, Codes) and why_not(product) is None:
        blocks = blocks_of(_ordered(product, order))
        wanted = product.matrix() if order is None else product.matrix()[torch.from_numpy(order)]
        return _Held(blocks.type, blocks.data, loss or relative_error(torch.from_numpy(blocks.values), wanted))
    values = entry.tensor().float().numpy()
    values = values if order is None else values[order]
    if how.dtype == "float32":
        return _Held("F32", values, loss)
    narrow = values.astype(np.float16)
    return _Held("F16", narrow, loss or relative_error(torch.from_numpy(narrow).float(), torch.from_numpy(values)))


def _ordered(codes: Codes, order: np.ndarray | None) -> Codes:
    """Codes with their rows in another order."""
    if order is None:
        return codes
    rows = torch.from_numpy(order)
    zeros = None if codes.zeros is None else codes.zeros[rows]
    return Codes(codes.codes[rows], codes.scales[rows], zeros, codes.columns, codes.group)


def _describe(
    writer: Any, library: Any, named: tuple[str, str], config: dict[str, Any], words: Vocabulary | None
) -> None:
    """What the model is called, and its tokenizer. named: its name, and the type of most of its weights."""
    writer.add_name(named[0])
    writer.add_file_type(getattr(library.LlamaFileType, f"MOSTLY_{named[1]}", library.LlamaFileType.ALL_F32))
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    if words is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    special = {key: _first(config.get(f"{key}_token_id")) for key in ("bos", "eos", "pad")}
    for key, number in ({k: v for k, v in special.items() if v is not None} | words.special).items():
        getattr(writer, f"add_{key}_token_id")(number)
    if words.add_bos is not None:
        writer.add_add_bos_token(words.add_bos)
    if words.template is not None:
        writer.add_chat_template(words.template)


def _first(value: Any) -> int | None:
    """An id, or the first of several."""
    found = value[0] if isinstance(value, list) and value else value
    return found if isinstance(found, int) else None
