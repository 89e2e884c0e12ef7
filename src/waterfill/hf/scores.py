"""How good a language model is on a text, and how far from the original: perplexity by windows, divergence."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waterfill.errors import BadInput
from waterfill.evaluation.evaluate import Evaluation
from waterfill.evaluation.evaluate import evaluate as measure
from waterfill.hf.load import load
from waterfill.hf.original import original_tokenizer
from waterfill.hf.text import Windows

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TextScores:
    """The result of `evaluate`. Every token of a window but the first is predicted, from those before it in the window:
    perplexity depends on how long windows are, and is compared only with that of windows as long.

    Attributes:
        evaluation: all numbers, with one row for each token that was predicted.
        windows: how many there were, and of how many tokens.
    """

    evaluation: Evaluation
    windows: Windows

    @property
    def perplexity(self) -> float:
        """exp of the mean log loss of a token."""
        return self.evaluation.perplexity or 0.0

    def as_json(self) -> dict[str, Any]:
        """The numbers that were measured, for JSON, with the context they hold for."""
        found = {name: value for name, value in self.evaluation.as_json().items() if name not in ("batches", "rows")}
        windows = {"windows": self.windows.count, "context": self.windows.length}
        return windows | {"predicted_tokens": self.evaluation.rows} | found

    def text(self) -> str:
        """A table in plain text."""
        heading = f"{self.windows.count} windows of {self.windows.length} tokens, none seen across their borders"
        return f"{heading}\n{self.evaluation.text()}"


def evaluate(
    model: "nn.Module",
    text: "str | Path",
    tokenizer: Any,
    windows: Windows = Windows(64, 512),
    *,
    reference: "nn.Module | None" = None,
) -> TextScores:
    """Measure a causal language model on a text, and its distance from the original on the same tokens.

    Args:
        model: of transformers, dense or packed.
        text: a file of plain text.
        tokenizer: the model's, or the path of the folder in which it lies.
        windows: how many of the text, one behind the other, and of how many tokens.
        reference: the original, for divergence (nats a token) and top-1 agreement.

    Returns:
        Perplexity, accuracy, bits per byte of text, and where there is a reference the distance from it.

    Raises:
        BadInput: a model that predicts no next token, a text too short, windows longer than the model can read.

    Example:
        >>> scores = waterfill.hf.evaluate(model, "held_out.txt", "SmolLM2-135M-3bit", reference=original)
        >>> print(scores.perplexity, scores.evaluation.divergence)
    """
    for some in (model, reference):
        predicts: Any = getattr(some, "can_generate", None)
        if some is not None and not (predicts and predicts()):
            raise BadInput(
                f"a {type(some).__name__} predicts no next token; perplexity is for causal language models of "
                "transformers, and waterfill.evaluate for all others"
            )
    if isinstance(tokenizer, str | Path):
        tokenizer = original_tokenizer(tokenizer)
    windows.check_fits(model)
    tokens = windows.of(text, tokenizer)
    predicted = "".join(tokenizer.batch_decode(tokens[:, 1:], clean_up_tokenization_spaces=False))
    device = next(model.parameters()).device
    batches = [(some[:, :-1].to(device), some[:, 1:].to(device)) for some in windows.split(tokens)]
    size = max(1, len(predicted.encode()))
    return TextScores(measure(model, batches, reference=reference, data_bytes=size), windows)


def lm_eval_model(folder: "str | Path", *, packed: bool = False, **options: Any) -> Any:
    """A compressed folder as a model of EleutherAI's lm-evaluation-harness: its `HFLM` around the loaded model.

    Args:
        folder: as `compress_folder` wrote it, its tokenizer in it.
        packed: as of `load`.
        options: further arguments of `HFLM`, such as batch_size.

    Raises:
        BadInput: the harness is not installed; and as `load`.

    Example:
        >>> lm_eval.simple_evaluate(model=waterfill.hf.lm_eval_model("SmolLM2-135M-3bit"), tasks=["lambada_openai"])
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise BadInput(f'this needs lm-evaluation-harness ({error}): pip install "waterfill[lm-eval]"') from error
    return HFLM(pretrained=load(folder, packed=packed), tokenizer=original_tokenizer(folder), **options)
