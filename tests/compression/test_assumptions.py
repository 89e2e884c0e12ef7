"""What a network's structure tells where no data do: blocks, what stands outside of them, norms with statistics."""

import math

import pytest
import torch
from torch import Tensor

import waterfill
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.allocation.without_data import SIZE_EXPONENT
from waterfill.compression.costs.assumptions import amplification, by_place, informed
from waterfill.compression.task import plan_weights
from waterfill.network.layout import layout_of
from waterfill.recipe import parse


def language_model(blocks: int = 6, width: int = 32, tokens: int = 2000) -> dict[str, Tensor]:
    """Tensors of a stream of `width` with blocks of matrices of several sizes, and one table of tokens."""
    state = {"table": torch.randn(tokens, width)}
    for i in range(blocks):
        state |= {f"parts.{i}.narrow": torch.randn(width // 4, width), f"parts.{i}.square": torch.randn(width, width)}
        state |= {f"parts.{i}.wide": torch.randn(4 * width, width), f"parts.{i}.scale": torch.rand(width) + 0.5}
    return state


def spent(state: dict[str, Tensor], bits: float) -> dict[str, float]:
    """Bits per entry of every tensor of a compressed network."""
    return {row["name"]: row["bits"] for row in waterfill.compress(state, bits=bits).table()}


def planned(state: dict[str, Tensor]) -> list[Weight]:
    return plan_weights(state, dict.fromkeys(state, parse("Quantize()")), {}, None)


def factors(state: dict[str, Tensor]) -> dict[str, float]:
    return {w.name: w.factor for w in planned(state)}


@pytest.mark.parametrize("bits", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_table_beside_blocks_gets_the_bits_of_others(bits) -> None:
    found = spent(language_model(), bits)
    assert bits - 0.3 < found["table"] < bits + 0.8
    assert found["parts.0.wide"] < found["parts.0.square"] < found["parts.0.narrow"] < found["parts.0.wide"] + 1.5


def test_readers_of_a_stream_count_by_columns_and_tables_by_rows() -> None:
    lines = {w.name: w.lines for w in planned(language_model())}
    assert lines["table"] == "rows"
    assert {lines[f"parts.0.{name}"] for name in ("narrow", "square", "wide")} == {"columns"}
    writer = {f"parts.{i}.writer": torch.randn(32, 128) for i in range(6)}
    assert plan_lines(language_model() | writer)["parts.0.writer"] == ""
    assert set(plan_lines({"table": torch.randn(2000, 32), "square": torch.randn(32, 32)}).values()) == {""}


def plan_lines(state: dict[str, Tensor]) -> dict[str, str]:
    return {w.name: w.lines for w in planned(state)}


def test_weak_columns_of_a_reader_are_kept_as_well_as_strong_ones() -> None:
    state = language_model()
    strength = torch.logspace(-1, 0.5, 32)
    for i in range(6):
        state[f"parts.{i}.wide"] *= strength
    found = waterfill.compress(state, bits=4).state_dict()
    error = (found["parts.0.wide"] - state["parts.0.wide"]).norm(dim=0) / state["parts.0.wide"].norm(dim=0)
    assert float(error.max()) < 2 * float(error.min())


def test_without_blocks_only_sizes_count() -> None:
    state = {"table": torch.randn(2000, 32), "wide": torch.randn(128, 32), "square": torch.randn(32, 32)}
    assert set(factors(state).values()) == {1.0}
    found = spent(state, 4)
    gap = 0.5 * (1 - SIZE_EXPONENT) * math.log2(2000 / 128)
    assert found["wide"] - found["table"] == pytest.approx(gap, abs=0.3)


@pytest.mark.parametrize("name", ["alone.{}.weight", "stage{}.first", "stage{}.second"])
def test_a_chain_is_no_stream(name) -> None:
    state = {name.format(i): torch.randn(32, 32) for i in range(6)} | {"head": torch.randn(1000, 32)}
    assert set(factors(state).values()) == {1.0}


def test_a_single_block_is_no_stream() -> None:
    state = {"part.0.first": torch.randn(32, 32), "part.0.second": torch.randn(64, 32), "head": torch.randn(1000, 32)}
    assert set(factors(state).values()) == {1.0}


def test_names_count_by_their_structure_alone() -> None:
    state = language_model()
    renamed = {name.replace("parts", "x.y").replace("wide", "z"): value for name, value in state.items()}
    assert list(factors(state).values()) == list(factors(renamed).values())


def test_kernels_of_single_channels_are_no_part_of_a_block() -> None:
    state = {f"parts.{i}.{k}": torch.randn(*s) for i in range(4) for k, s in (("a", (64, 1, 3, 3)), ("b", (64, 64)))}
    layouts = {name: layout_of(tuple(value.shape), value.dtype) for name, value in state.items()}
    assert set(by_place(layouts).values()) <= {1.0}


def normed(mean: float, names: tuple[str, str] = ("a.conv", "a.norm")) -> dict[str, Tensor]:
    """A convolution, a norm behind it with means of so many deviations, and one without a norm."""
    conv, norm = names
    ones = torch.ones(16)
    values = {"weight": ones.clone(), "bias": 3 * ones, "running_mean": mean * ones, "running_var": ones}
    plain = {f"{conv}.weight": torch.randn(16, 8, 3, 3), "b.weight": torch.randn(16, 8, 3, 3)}
    return plain | {f"{norm}.{part}": value for part, value in values.items()}


def test_errors_in_what_a_norm_takes_out_are_dear() -> None:
    found = factors(normed(3.0))
    assert found["a.conv.weight"] == pytest.approx(10, rel=1e-3)
    assert found["a.norm.running_mean"] == pytest.approx(9, rel=1e-3)
    assert found["a.norm.bias"] == pytest.approx(9, rel=1e-3)
    assert found["b.weight"] == found["a.norm.weight"] == 1
    bits = spent(normed(3.0), 4)
    assert bits["a.conv.weight"] - bits["b.weight"] == pytest.approx(0.5 * math.log2(10), abs=0.4)


def test_a_norm_of_centered_outputs_changes_nothing() -> None:
    assert factors(normed(0.0))["a.conv.weight"] == 1


def test_a_norm_without_a_weight_beside_it_changes_no_weight() -> None:
    found = factors(normed(3.0, ("a.conv", "elsewhere.deep.norm")))
    assert found["a.conv.weight"] == 1


def test_of_several_weights_the_one_whose_rows_fit_stands_before_a_norm() -> None:
    state = normed(3.0)
    rows = torch.linspace(0.1, 3.0, 16)
    state["a.norm.running_var"] = rows.square()
    state["a.norm.running_mean"] = 3 * rows
    state["a.cone.weight"] = torch.randn(16, 8, 3, 3)
    state["a.conv.weight"] *= rows[:, None, None, None]
    found = factors(state)
    assert found["a.conv.weight"] > 5
    assert found["a.cone.weight"] == 1


def test_dead_channels_do_not_make_a_layer_priceless() -> None:
    mean, variance, scale = torch.ones(8), torch.ones(8), torch.ones(8)
    variance[0] = 0.0
    assert 1 < amplification(mean, variance, scale) <= 31
    assert amplification(mean, variance, torch.zeros(8)) == 1


def test_what_is_known_of_all_weights_keeps_their_order() -> None:
    weights = planned(language_model())
    assert [w.name for w in informed(weights)] == [w.name for w in weights]
