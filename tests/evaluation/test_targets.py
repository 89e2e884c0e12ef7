"""Which output a target stands for: where the model says so by its loss it is believed, else nothing is guessed."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from waterfill import evaluate
from waterfill.errors import BadInput
from waterfill.evaluation.quality import measure_of

TOKENS = torch.randint(0, 12, (6, 9), generator=torch.Generator().manual_seed(3))
CLASSES = 12


class Language(nn.Module):
    """Tokens [batch, time] to logits; each says what follows: twice the token, with mistakes for some."""

    def __init__(self, kind: str = "dict", shift: int = 1) -> None:
        super().__init__()
        self.kind, self.shift = kind, shift
        self.table = nn.Parameter(torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(5)))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None):
        logits = self.table[input_ids]
        if labels is None:
            return {"dict": {"logits": logits}, "object": SimpleNamespace(logits=logits), "tuple": (logits,)}[self.kind]
        kept = logits[:, : logits.shape[1] - self.shift]
        loss = F.cross_entropy(kept.flatten(0, 1), labels[:, self.shift :].flatten())
        if self.kind == "tuple":
            return logits, loss
        return {"logits": logits, "loss": loss} if self.kind == "dict" else SimpleNamespace(logits=logits, loss=loss)


def batches(labels: Tensor = TOKENS) -> list[dict[str, Tensor]]:
    pairs = zip(TOKENS.split(2), labels.split(2), strict=True)
    return [{"input_ids": tokens, "labels": own} for tokens, own in pairs]


def right(shift: int, labels: Tensor = TOKENS) -> float:
    """The share of tokens that are predicted, counted by hand."""
    found = Language().table[TOKENS].argmax(-1)[:, : TOKENS.shape[1] - shift]
    counted = labels[:, shift:] != -100
    return float((found == labels[:, shift:])[counted].double().mean())


@pytest.mark.parametrize("kind", ["dict", "object", "tuple"])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_models_own_loss_says_whether_labels_are_shifted(kind, shift) -> None:
    model = Language(kind, shift)
    found = evaluate(model, batches(), reference=model)
    assert found.accuracy == pytest.approx(right(shift)) and right(0) != right(1)
    with torch.no_grad():
        own = model(TOKENS, TOKENS)
    loss = own["loss"] if kind == "dict" else own.loss if kind == "object" else own[1]
    assert found.nats == pytest.approx(float(loss), rel=1e-5)
    assert found.agreement == 1 and found.rows == TOKENS.numel()


def test_labels_that_do_not_count_stay_so_when_shifted() -> None:
    labels = TOKENS.clone()
    labels[:, :4] = -100
    assert evaluate(Language(), batches(labels)).accuracy == pytest.approx(right(1, labels))


def test_metrics_of_the_caller_get_what_belongs_together() -> None:
    def agrees(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(-1) == targets).double()

    assert evaluate(Language(), batches(), metrics={"own": agrees}).metrics["own"] == pytest.approx(right(1))


def test_a_measure_scores_texts_and_not_tokens() -> None:
    found = measure_of("accuracy", batches(), Language()).scores(Language())
    assert found.value == pytest.approx(right(1)) and found.counts.tolist() == [8] * 6
    most = torch.bincount(TOKENS[:, 1:].flatten()).max() / 48
    assert found.chance == pytest.approx(float(most))
    assert measure_of("perplexity", batches(), Language()).scores(Language()).chance == CLASSES


class Needs(Language):
    """What cannot run without its labels."""

    def forward(self, input_ids: Tensor, labels: Tensor):
        return super().forward(input_ids, labels)


def test_a_model_that_needs_its_labels_gets_them() -> None:
    assert evaluate(Needs(), batches()).accuracy == pytest.approx(right(1))


class Silent(Language):
    """What takes no labels, and returns no loss."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids]


class Deaf(Silent):
    """What takes labels and makes nothing of them."""

    def forward(self, input_ids: Tensor, **_: Tensor) -> Tensor:
        return self.table[input_ids]


@pytest.mark.parametrize("model", [Silent(), Deaf()])
def test_targets_that_are_the_inputs_are_refused_where_no_loss_explains_them(model) -> None:
    pairs = list(zip(TOKENS.split(2), TOKENS.split(2), strict=True))
    for given in (batches(), pairs):
        with pytest.raises(BadInput, match=r"targets are the inputs themselves.*tokens\[:, 1:\]"):
            evaluate(model, given)
    with pytest.raises(BadInput, match="inputs themselves"):
        evaluate(model, batches(), forward=lambda m, batch: m(batch["input_ids"]))
    shifted = [(tokens[:, :-1], tokens[:, 1:]) for tokens in TOKENS.split(2)]
    assert evaluate(model, shifted).accuracy == pytest.approx(right(1))
    asked = evaluate(model, [{"input_ids": TOKENS}], targets=lambda batch: batch["input_ids"])
    assert asked.accuracy == pytest.approx(right(0))  # it was said, so it is done


class Smoothed(Language):
    """A loss that is not the log loss of the labels."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None):
        logits = self.table[input_ids]
        loss = F.cross_entropy(logits.flatten(0, 1), input_ids.flatten(), label_smoothing=0.5)
        return {"logits": logits, "loss": loss}


def test_a_loss_that_neither_way_gives_is_refused_with_the_numbers() -> None:
    with pytest.raises(BadInput, match=r"own loss for its labels is .*, but the log loss of its outputs is .*after it"):
        evaluate(Smoothed(), batches())


def test_classes_of_images_are_as_they_were() -> None:
    class Images(nn.Module):
        def forward(self, pixels: Tensor, labels: Tensor | None = None):
            return {"logits": pixels, "loss": None if labels is None else F.cross_entropy(pixels, labels)}

    pixels, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert evaluate(Images(), [{"pixels": pixels, "labels": labels}]).accuracy == 0.75
