"""`compress_folder`: the folder of a transformers model as a compressed one, without inputs or with those of a text."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from waterfill.assignment import Recipe
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.blocks.in_memory import MANY
from waterfill.compression.compress import compress
from waterfill.compression.engine.engine import Engine
from waterfill.compression.file import Summary, compress_file
from waterfill.compression.options import AUTO_BLOCKS, NO_BLOCKS, Options
from waterfill.compression.post_training import automatic
from waterfill.errors import BadRecipe
from waterfill.hf.block_by_block import compressed, prepared
from waterfill.hf.folder import WEIGHTS, check_plain, copy_beside, write_card, write_config
from waterfill.hf.original import linear_weights, original_model, original_tokenizer
from waterfill.hf.staging import Staging, staged
from waterfill.hf.text import Windows
from waterfill.network.checkpoint import Checkpoint, open_checkpoint
from waterfill.recipe import DEFAULT_RECIPE

_WITH_TOKENIZER, _OF_LINEAR_LAYERS = "gguf", "compressed-tensors"
"""Formats with the tokenizer in the file, and with codes for plain linear layers alone."""
_EXPERTS = ".experts."  # linear layers on disk


def compress_folder(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    source: "str | Path",
    target: "str | Path",
    spec: "Recipe | None" = None,
    *,
    ignore: Sequence[str] = (),
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    lossless: bool = False,
    text: "str | Path | None" = None,
    windows: Windows = Windows(),
    format: str | None = None,
    options: Options = Options(),
    engine: Engine | None = None,
) -> Summary:
    """Compress the folder of a transformers model into a folder that transformers reads after `import waterfill.hf`.

    The weights become `model.wf`; config, generation config, tokenizer, card and whatever else lies there are copied.
    Without a text one weight is in memory at a time. With one, its windows show where errors cost least; then the whole
    network is in memory, in float32, or, where it is large (`Options.blocks`), one of its blocks. The same call goes on
    where a killed one was, except for a whole network with a text.

    Args:
        source: the folder, with its config and its weights as `.safetensors`, in one file or in shards with an index.
        target: the folder to make.
        spec: as of `compress_file`, or of `compress` where there is a text. Patterns are of names in the checkpoint;
            with a text of those in the model, which differ where transformers renames.
        ignore: patterns of names of tensors that are kept bit for bit, as of `compress`.
        bits: per weight, of `model.wf`; and so are the other budgets, as of `compress_file`.
        size: bytes of `model.wf`.
        ratio: bytes of the original tensors over bytes of `model.wf`.
        price: the water level itself, nats per bit.
        lossless: keep every tensor bit for bit.
        text: a file of plain text like what the model will read, to calibrate with; needs the extra `waterfill[hf]`.
        windows: how many windows of the text, of how many tokens.
        format: "gguf" or "compressed-tensors", to which the folder is exported later: budgets are of that file, and
            each weight has bits that it holds, as of `compress`.
        options: as of `compress_file`; `force` replaces a compressed folder, and nothing else.
        engine: as of `compress_file`; not with a text.

    Returns:
        As of `compress_file`; `path` is the folder, `size` that of `model.wf`.

    Raises:
        BadInput: no config, no weights, a missing shard, a quantized folder, a text too short, transformers missing.
        OutputExists: the target is there and `options.force` is not set, or it is no compressed folder.
        CorruptFile, BadRecipe, BudgetError, PlanMismatch, EngineError, OSError: as `compress_file`.

    Example:
        >>> waterfill.hf.compress_folder("SmolLM2-135M", "SmolLM2-135M-3bit", bits=3)
    """
    if lossless and text is not None:
        raise BadRecipe("lossless=True keeps every bit and needs no text: leave it out")
    if engine is not None and text is not None:
        raise BadRecipe("an engine works on weights without inputs: leave the text or the engine out")
    began, folder, options = time.monotonic(), Path(source), options.written_as(format)
    config = check_plain(folder)
    checkpoint = open_checkpoint(folder)
    options, ignore = _to_format(folder, options, ignore, checkpoint)
    budget: dict[str, Any] = {"bits": bits, "size": size, "ratio": ratio, "price": price}
    with staged(target, options.force, folder) as staging:
        if text is None:
            inner = replace(options, work=options.work or staging.journal, force=True)
            recipe = DEFAULT_RECIPE if spec is None else spec
            how: dict[str, Any] = {"ignore": ignore, "lossless": lossless, "options": inner, "engine": engine}
            made = compress_file(folder, staging.made / WEIGHTS, recipe, **how, **budget)
        else:
            wanted = budget | {"spec": spec, "ignore": ignore}
            made = _by_text((folder, checkpoint), staging, wanted, (Path(text), windows, options))
        copy_beside(folder, staging.made)
        write_config(config, checkpoint, staging.made)
        write_card(staging.made, Path(target).name)
    return replace(made, path=Path(target), seconds=time.monotonic() - began)


def _to_format(
    folder: Path, options: Options, ignore: Sequence[str], checkpoint: Checkpoint
) -> tuple[Options, Sequence[str]]:
    """The options and what is ignored, with what a format has beside the weights, and what it holds dense."""
    if options.runs == _WITH_TOKENIZER and not options.beside:
        words = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
        return replace(options, beside=sum(path.stat().st_size for path in words if path.exists())), ignore
    if options.runs == _OF_LINEAR_LAYERS:
        linear = linear_weights(folder)
        matrices = [name for name, stored in checkpoint.tensors.items() if len(stored.shape) > 1]
        other = [name for name in matrices if not linear.get(name, _EXPERTS in name)]
        return options, [*ignore, *other]
    return options, ignore


def _by_text(
    source: tuple[Path, Checkpoint],
    staging: Staging,
    wanted: dict[str, Any],
    how: tuple[Path, Windows, Options],
) -> Summary:
    """Compress with windows of a text as inputs, a large network block by block. A ratio is one to the tensors on disk,
    not to those in memory, which may be wider. wanted: recipes and budget."""
    (folder, checkpoint), (text, windows, options) = source, how
    original = checkpoint.original_bytes
    if wanted["ratio"] is not None and wanted["size"] is None:
        wanted = wanted | {"size": int(original / wanted["ratio"]), "ratio": None}
    tokens = windows.of(text, original_tokenizer(folder))
    if options.blocks != NO_BLOCKS and (options.blocks != AUTO_BLOCKS or _entries(checkpoint) >= MANY):
        budget = Budget(**{name: wanted[name] for name in ("bits", "size", "ratio", "price")})
        recipe = automatic(wanted["spec"], wanted["ignore"], options)
        found = prepared(source, (recipe, budget), (tokens, windows), options)
        if found is not None:
            return compressed(found, staging)
    model = original_model(folder)
    windows.check_fits(model)
    made = compress(model, windows.batches(tokens), options=replace(options, blocks=NO_BLOCKS), **wanted)
    made.save(staging.made / WEIGHTS)
    return Summary(staging.made, made.table(), made.size, original, made.weights, 0.0, dict(made.aliases))


def _entries(checkpoint: Checkpoint) -> int:
    return sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
