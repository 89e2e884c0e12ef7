"""A text as windows of tokens: inputs to calibrate with, and to measure on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from waterfill.errors import BadInput
from waterfill.storage.paths import check_source

if TYPE_CHECKING:
    from torch import nn

_TOKENS_AT_ONCE = 1024  # of a batch: logits of large vocabularies take megabytes for each
_CHARACTERS = 8  # of a text that are read for each token that is wanted, at first


@dataclass(frozen=True)
class Windows:
    """So many windows of a text, one behind the other from its beginning, each of so many tokens.

    Example:
        >>> waterfill.hf.Windows(128, 512)
    """

    count: int = 128
    length: int = 512

    def __post_init__(self) -> None:
        if self.count < 1 or self.length < 2:
            raise BadInput(f"{self.count} windows of {self.length} tokens; give at least 1 of at least 2")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Windows as a command line has them, such as 128x512. Raises BadInput."""
        count, x, length = text.lower().partition("x")
        if not x or not count.isdecimal() or not length.isdecimal():
            raise BadInput(f"{text!r} does not say how many windows of how many tokens; give something like 128x512")
        return cls(int(count), int(length))

    def of(self, text: "str | Path", tokenizer: Any) -> Tensor:
        """The windows of a file of text, int64 [count, length]. Raises BadInput for a text that is too short."""
        content, wanted = _read(Path(text)), self.count * self.length
        part, ids = 0, list[int]()
        while len(ids) < wanted and part < len(content):
            part = 2 * part or _CHARACTERS * wanted
            ids = tokenizer(content[:part], add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) < wanted:
            raise BadInput(
                f"{text} has {len(ids)} tokens, and {self.count} windows of {self.length} take {wanted}; "
                "give a longer text, or fewer windows (--tokens)"
            )
        return torch.tensor(ids[:wanted], dtype=torch.int64, device="cpu").reshape(self.count, self.length)

    def batches(self, tokens: Tensor) -> list[dict[str, Tensor]]:
        """Windows as inputs by keyword, a few at a time."""
        return [{"input_ids": some} for some in self.split(tokens)]

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Windows [count, length] a few at a time."""
        return list(tokens.split(max(1, _TOKENS_AT_ONCE // self.length)))

    def check_fits(self, model: "nn.Module") -> None:
        """Raises BadInput if the windows are longer than what a model can read at once."""
        config: Any = getattr(model, "config", None)
        most = getattr(config, "max_position_embeddings", None)
        if isinstance(most, int) and 0 < most < self.length:
            raise BadInput(f"the model reads at most {most} tokens at once, and windows have {self.length}")


def _read(path: Path) -> str:
    check_source(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist; give a file of plain text") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise BadInput(f"{path} is no file of plain text in UTF-8: {error}") from error
