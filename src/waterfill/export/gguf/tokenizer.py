"""The tokenizer of a transformers folder as a file of GGUF has it: byte pairs over bytes, as GPT-2 began them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waterfill.errors import CannotExport, CorruptFile

_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
"""Types of tokens, as llama.cpp numbers them."""


@dataclass(frozen=True)
class Vocabulary:
    """model and pre: how llama.cpp names the kind of tokenizer, and how it cuts a text first.

    special: the ids of tokens with a meaning, by its name ("bos", "eos", "unk", "pad").
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool | None
    template: str | None


def vocabulary(folder: Path, size: int) -> Vocabulary | None:
    """The vocabulary of a folder, with unused tokens up to `size`; None where it has no tokenizer.json.

    Raises CannotExport for kinds of tokenizers that are not written here, CorruptFile for a damaged file.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    found, config = _json(path), _json(folder / "tokenizer_config.json")
    model = found.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = f"{model.get('type')}{' with byte fallback' if model.get('byte_fallback') else ''}"
        raise CannotExport(
            f"the tokenizer of {folder} is {kind}, and only byte pairs over bytes (GPT-2, Llama 3) are written; "
            "convert the folder that `waterfill export --to safetensors` makes with llama.cpp's own script"
        )
    names = {number: token for token, number in model["vocab"].items()}
    types = dict.fromkeys(names, _NORMAL)
    for added in found.get("added_tokens", []):
        names[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added.get("special") else _USER
    count = max([size, *(number + 1 for number in names)])
    tokens = [names.get(number, f"[PAD{number}]") for number in range(count)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    kinds = [types.get(number, _UNUSED) for number in range(count)]
    special = _special(config, {token: number for number, token in names.items()})
    pre = _cutting(found.get("pre_tokenizer"), folder)
    return Vocabulary(
        "gpt2", pre, tokens, kinds, merges, special, config.get("add_bos_token"), _template(folder, config)
    )


def _special(config: dict[str, Any], numbers: dict[str, int]) -> dict[str, int]:
    found = {}
    for key in ("bos", "eos", "unk", "pad"):
        token = config.get(f"{key}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in numbers:
            found[key] = numbers[text]
    return found


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template of chats, of a file of its own or of the config."""
    own = folder / "chat_template.jinja"
    text = own.read_text(encoding="utf-8") if own.exists() else config.get("chat_template")
    return text if isinstance(text, str) else None


def _cutting(pre: dict[str, Any] | None, folder: Path) -> str:
    """llama.cpp's name for how a text is cut into words. Raises CannotExport for one that it may not have."""
    steps = pre.get("pretokenizers", [pre]) if pre else []
    kinds = [step.get("type") for step in steps]
    patterns = [str(step.get("pattern", {}).get("Regex", "")) for step in steps if step.get("type") == "Split"]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and r"\p{N}{1,3}" in patterns[0]:
        return "llama-bpe"
    if kinds == ["Split", "ByteLevel"] and r"|\p{N}|" in patterns[0]:
        return "qwen2"
    cut = ", ".join(map(str, kinds)) or "nothing"
    raise CannotExport(
        f"the tokenizer of {folder} cuts texts by {cut}, of which llama.cpp's name is not known here; convert the "
        "folder that `waterfill export --to safetensors` makes with llama.cpp's own script"
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path} is no JSON ({error}); fetch it again") from error
    return found if isinstance(found, dict) else {}
