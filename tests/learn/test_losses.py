"""Learning to say what another network says: any outputs that can be compared."""

import math
from types import SimpleNamespace

import pytest
import torch

from waterfill.errors import BadInput
from waterfill.learn import Imitation


def test_the_usual_temperature_is_that_of_a_row_for_each_input_or_of_sequences() -> None:
    p, q = torch.randn(6, 5), torch.randn(6, 5)
    assert torch.equal(Imitation()(q, p), Imitation(4.0)(q, p))
    assert torch.equal(Imitation()(q.view(2, 3, 5), p.view(2, 3, 5)), Imitation(1.0)(q, p))


def test_logits_by_the_divergence_at_a_temperature() -> None:
    p, q = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    soft = torch.tensor([1.0, 0.0]).softmax(0)
    expected = 4 * float((soft * (soft / 0.5).log()).sum()) / 2
    assert float(Imitation(2.0)(q, p)) == pytest.approx(expected, rel=1e-5)


def test_classes_that_can_never_be_count_nothing() -> None:
    p = torch.tensor([[1.0, -math.inf, 0.0]])
    q = torch.tensor([[0.5, -math.inf, 0.0]]).requires_grad_()
    loss = Imitation()(q, p)
    loss.backward()
    assert 0 < float(loss.detach()) < 1 and torch.isfinite(q.grad[0, ::2]).all()


def test_values_relative_to_their_variance() -> None:
    x = torch.randn(4, 3, 8, 8)
    for unit in (1e-3, 1.0, 1e3):
        assert float(Imitation()(unit * 1.1 * x, unit * x)) == pytest.approx(0.01, rel=0.05)
    assert float(Imitation(logits=False)(torch.zeros(6, 5), torch.randn(6, 5))) == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y, y.argmax(1)),
        lambda y: {"logits": y, "hidden": 0 * y},
        lambda y: SimpleNamespace(logits=y),
    ],
)
def test_whatever_a_forward_returns(wrap) -> None:
    p, q = torch.randn(6, 5), torch.randn(6, 5)
    assert torch.equal(Imitation()(wrap(q), wrap(p)), Imitation()(q, p))


def test_no_gradient_runs_to_the_reference() -> None:
    p, q = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    Imitation()(q, p).backward()
    assert p.grad is None and q.grad is not None


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(BadInput, match=r"\[6, 4\].*\[6, 5\].*loss of your own"):
        Imitation()(torch.randn(6, 4), torch.randn(6, 5))
    with pytest.raises(BadInput, match="cannot be compared"):
        Imitation()({"ids": torch.arange(3)}, {"ids": torch.arange(3)})


def test_what_a_recurrent_network_remembers_is_no_output():
    logits, state, cache = torch.randn(4, 7, 5), torch.randn(2, 4, 8), torch.randn(4, 2, 7, 3)
    other = torch.randn(4, 7, 5)
    alone = Imitation()(other, logits)
    assert alone == Imitation()((other, (state + 1, state)), (logits, (state, state)))
    assert alone == Imitation()((other, state + 1), (logits, state))  # as a GRU returns it
    assert alone == Imitation()((other, ((cache, cache + 1),)), (logits, ((cache, cache),)))


def test_every_output_that_has_a_row_for_each_input_counts():
    boxes, scores = torch.randn(4, 7, 5), torch.randn(4, 3)
    other = scores + torch.randn(4, 3)
    assert Imitation()((boxes, other), (boxes, scores)) == pytest.approx(float(Imitation()(other, scores)), rel=1e-5)
