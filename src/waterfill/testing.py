"""The contract of a spec and its parts, for the kinds in this package and for those of others.

    from waterfill.testing import check_spec
    check_spec(MySpec())

Each check raises AssertionError, saying what was broken; together they are what the rest of the package relies on.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from waterfill.coding.stream import Writer
from waterfill.errors import CorruptFile, NewerFormat
from waterfill.importance import Importance
from waterfill.part import Part, Spec, cost, decode
from waterfill.recipe import parse

_PRICE_FACTOR = 8.0
_MOST_CUTS = 64
_FLIPS = 192
_RANDOM = 64


def sample_target(rows: int = 24, cols: int = 36) -> Tensor:
    """A matrix [rows, cols] with what real weights have: a low rank share, outliers and rows of different scale."""
    given: dict[str, Any] = {
        "dtype": torch.float32,
        "device": "cpu",
        "generator": torch.Generator("cpu").manual_seed(1),
    }
    normal, uniform = partial(torch.randn, **given), partial(torch.rand, **given)
    noise = normal(rows, cols)
    smooth = normal(rows, 2) @ normal(2, cols)
    outliers = 6 * normal(rows, cols) * (uniform(rows, cols) < 0.03)
    scales = uniform(rows, 1) + 0.5
    return 0.05 * scales * (noise + smooth + outliers)


@dataclass(frozen=True)
class Case:
    """A test case of a spec: target [rows, cols] (float32), its importance and a price in nats per bit."""

    target: Tensor = field(default_factory=sample_target)
    importance: Importance = field(default_factory=Importance)
    price: float = 1e-4

    def fit(self, spec: Spec, price: float | None = None) -> Part:
        """The part of `spec`."""
        return spec.fit(self.target, self.importance, self.price if price is None else price)


def check_spec(spec: Spec, case: Case | None = None) -> None:
    """All checks below, on one case. Raises AssertionError."""
    case = Case() if case is None else case
    part = case.fit(spec)
    check_recipe(spec)
    check_matrix(part, case.target)
    check_repeatable(spec, case)
    check_round_trip(part)
    check_size(part)
    check_apply(part)
    check_prices(spec, case)
    check_sum(spec, case)
    check_corruption(part)


def check_recipe(spec: Spec) -> None:
    """`repr` is the recipe of an equal spec."""
    again = parse(repr(spec))
    assert again == spec and hash(again) == hash(spec), f"{spec!r} reads back as {again!r}"


def check_matrix(part: Part, target: Tensor) -> None:
    """The part has the target's shape, and finite values."""
    dense = part.dense()
    assert part.shape == tuple(target.shape) == tuple(dense.shape), f"{part.shape} for a {list(target.shape)} target"
    assert not dense.is_floating_point() or bool(torch.isfinite(dense.float()).all()), f"{part}: values not finite"


def check_repeatable(spec: Spec, case: Case) -> None:
    """The same input gives the same bytes."""
    assert case.fit(spec).encode() == case.fit(spec).encode(), f"{spec!r} gives different bytes for the same input"


def check_round_trip(part: Part) -> None:
    """A part that was written reads back equal, bit for bit."""
    again = decode(part.encode(), part.shape)
    assert again == part and again.encode() == part.encode(), f"{part.describe()}: reads back as another part"
    same = torch.equal(_raw(again.dense()), _raw(part.dense()))
    assert same, f"{part.describe()}: dense() differs after reading back"


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: equal where negative zeros and NaN payloads are too."""
    return tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor


def check_size(part: Part) -> None:
    """The bytes are within 1 % and 64 bytes of what was promised (huge empty parts are padded: check a small one)."""
    size = len(part.encode())
    assert abs(size - part.bits / 8) <= 0.01 * size + 64, (
        f"{part.describe()}: {size} bytes, promised {part.bits / 8:.0f}"
    )


def check_apply(part: Part) -> None:
    """`apply` equals a product with `dense()`, up to rounding, for any number of leading dimensions."""
    generator = torch.Generator("cpu").manual_seed(2)
    for lead in ((), (3,), (2, 3)):
        x = torch.randn(*lead, part.shape[1], dtype=torch.float32, device="cpu", generator=generator)
        expected = x @ part.dense().to(x.dtype).T
        product = part.apply(x)
        assert product.shape == expected.shape, f"{part.describe()}: apply() gives shape {list(product.shape)}"
        scale = float(x.norm() * part.dense().float().norm())
        assert float((product - expected).norm()) <= 1e-5 * scale, f"{part.describe()}: apply() is not x @ dense().T"


def check_prices(spec: Spec, case: Case) -> None:
    """A price eight times as high never buys more bits."""
    bits = [case.fit(spec, case.price * _PRICE_FACTOR**k).bits for k in range(-2, 3)]
    for low, high in pairwise(bits):
        assert high <= low + 1e-6, f"{spec!r}: {high:.0f} bits at a price eight times that of {low:.0f}"


def check_sum(spec: Spec, case: Case) -> None:
    """A sum never costs more than its best term."""
    single, both = (cost(case.fit(s), case.target, case.importance, case.price) for s in (spec, spec + spec))
    assert both <= single * (1 + 1e-6), f"{spec!r} costs {single}, and {both} when added to itself"


def check_corruption(part: Part) -> None:
    """Cut, flipped and random bytes raise CorruptFile or NewerFormat, or are another part; never anything else.

    Bytes that happen to be another part are what the checksums of the file are for.
    """
    data = part.encode()
    random = np.random.default_rng(3)
    for length in sorted({int(length) for length in np.linspace(0, len(data) - 1, _MOST_CUTS)}):
        _survives(data[:length], part.shape)
    _survives(data + b"\x01", part.shape)
    for at in random.integers(0, 8 * len(data), _FLIPS):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        _survives(bytes(flipped), part.shape)
    head = Writer()
    head.uint(part.kind)
    for length in random.integers(0, 200, _RANDOM):
        _survives(head.finish() + random.bytes(int(length)), part.shape)


def _survives(data: bytes, shape: tuple[int, int]) -> None:
    try:
        part = decode(data, shape)
    except (CorruptFile, NewerFormat):
        return
    assert tuple(part.dense().shape) == shape, f"damaged bytes gave a part of another shape than {shape}"
