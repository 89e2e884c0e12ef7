"""Codes that all fit a width in memory, of which what they take there is what they cost."""

import pytest
import torch
from torch import Tensor, nn

import waterfill
from waterfill import Importance, Quantize
from waterfill.part import Codes
from waterfill.part.memory import bytes_at, bytes_of, width_of
from waterfill.runtime import table


def spread(rows: int, cols: int) -> Tensor:
    """A matrix with rows and columns of different scales."""
    generator = torch.Generator().manual_seed(rows + cols)
    scales = [torch.exp(0.7 * torch.randn(n, generator=generator)) for n in (rows, cols)]
    return torch.randn(rows, cols, generator=generator) * torch.outer(*scales)


def correlated(cols: int) -> Importance:
    """The importance of inputs that are correlated."""
    generator = torch.Generator().manual_seed(cols)
    x = torch.randn(2 * cols, cols, generator=generator).cumsum(1)
    return Importance(gram=x.T @ x / len(x), damping=0.01)


def codes_of(part: waterfill.Part) -> Codes:
    product = part.product()
    assert isinstance(product, Codes)
    return product


@pytest.mark.parametrize("shape", [(40, 128), (3, 9), (20, 560)])
@pytest.mark.parametrize("inputs", [False, True])
def test_a_dearer_price_buys_fewer_bits_of_memory_and_no_code_is_beyond_them(
    shape: tuple[int, int], inputs: bool
) -> None:
    target = spread(*shape)
    importance = correlated(shape[1]) if inputs else Importance()
    unit = importance.distortion(target) / target.numel()
    found = [Quantize(packed=True).fit(target, importance, unit * price) for price in (1e-6, 1e-3, 1e-1, 10.0)]
    memory = [bytes_of(part.product()) for part in found]
    assert memory == sorted(memory, reverse=True) and all(width_of(codes_of(part))[1] == 0 for part in found)
    lost = [importance.expected(target - part.dense()) for part in found]
    assert lost == sorted(lost)
    assert width_of(codes_of(found[0]))[0] == 8 and (shape[1] < 128 or width_of(codes_of(found[-1]))[0] == 2)


@pytest.mark.parametrize("bits", [2, 4])
def test_less_is_lost_than_by_rounding_to_as_many_bits(bits: int) -> None:
    target = spread(64, 256)
    for importance, share in ((Importance(), 1.0), (correlated(256), 0.5)):
        plain = Quantize(bits=bits).fit(target, Importance(), 1.0)
        price, own = importance.distortion(target), None
        while own is None or width_of(codes_of(own))[0] < bits:
            price /= 3
            own = Quantize(packed=True).fit(target, importance, price / target.numel())
        assert width_of(codes_of(own))[0] == bits
        assert importance.distortion(target - own.dense()) < share * importance.distortion(target - plain.dense())


def test_what_memory_is_said_to_take_is_what_packed_layers_hold() -> None:
    for spec, cols in (("Quantize(packed=True)", 300), ("Quantize()", 300), ("Codebook(levels=16)", 256)):
        made = waterfill.compress(nn.Linear(cols, 100, bias=False), spec=spec, price=1e-4)
        rows = table(waterfill.pack(made, nn.Linear(cols, 100, bias=False)))
        product = made.entries["weight"].parts[0].product()
        assert 0.95 * bytes_of(product) <= rows[0]["bytes"] <= bytes_of(product)
        assert bytes_at(product, (100, cols)) == pytest.approx(bytes_of(product), rel=0.01)


def test_nothing_at_all_is_held_in_two_bits() -> None:
    part = Quantize(packed=True).fit(torch.zeros(8, 128), Importance(), 1.0)
    assert width_of(codes_of(part)) == (2, 0) and not part.dense().any()
