"""How tensors become matrices and come back."""

import pytest
import torch
from tests.support.networks import same

from waterfill.dtypes import dtype_name, dtype_of, octets
from waterfill.errors import BadInput
from waterfill.network.layout import KERNEL, MATRIX, RAW, STACK, VECTOR, check_finite, layout_of

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(
    ("shape", "role", "matrix", "kernel"),
    [
        ((30, 40), MATRIX, (30, 40), ()),
        ((16, 8, 3, 3), KERNEL, (16, 72), (3, 3)),
        ((16, 8, 1, 1), KERNEL, (16, 8), ()),
        ((12, 8, 5), KERNEL, (12, 40), (5,)),
        ((6, 4, 3, 3, 3), KERNEL, (6, 108), (3, 3, 3)),
        ((16, 1, 3, 3), KERNEL, (16, 9), (3, 3)),
        ((8, 64, 64), STACK, (64, 64), ()),
        ((2, 3, 4, 2, 2, 2), MATRIX, (2, 96), ()),
        ((7,), VECTOR, (1, 7), ()),
        ((), VECTOR, (1, 1), ()),
        ((1, 7), VECTOR, (1, 7), ()),
        ((7, 1), VECTOR, (1, 7), ()),
    ],
)
def test_shapes_say_what_a_tensor_is(shape, role, matrix, kernel):
    layout = layout_of(shape, torch.float32)
    assert (layout.role, layout.matrix, layout.kernel) == (role, matrix, kernel)


def test_a_module_knows_better_than_the_shape():
    assert layout_of((8, 32, 16), torch.float32).role == KERNEL
    assert layout_of((8, 32, 16), torch.float32, STACK).matrix == (32, 16)
    assert layout_of((8, 32, 16), torch.float32, STACK).count == 8


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8])
def test_what_is_not_floating_point_is_raw(dtype):
    assert layout_of((30, 40), dtype).role == RAW


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (3, 2, 3, 3), (5, 40, 40), (0, 4), (4, 0), (2, 0, 3)])
def test_split_and_join_are_inverse(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    layout = layout_of(shape, dtype)
    matrices = layout.split(tensor)
    assert len(matrices) == layout.count
    assert all(tuple(m.shape) == layout.matrix for m in matrices)
    assert same(layout.join(matrices), tensor)


def test_a_stack_is_cut_into_its_matrices():
    tensor = torch.randn(5, 40, 40)
    assert all(torch.equal(m, tensor[i]) for i, m in enumerate(layout_of((5, 40, 40), torch.float32).split(tensor)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_not_finite_are_counted_and_named(bad, dtype):
    tensor = torch.randn(20, 20).to(dtype)
    check_finite("fine", tensor)
    tensor[3, 4:6] = bad
    with pytest.raises(BadInput, match=r"'layer\.weight' holds 2 values .*lossless"):
        check_finite("layer.weight", tensor)


def test_large_finite_values_pass_and_those_beyond_float32_do_not():
    check_finite("sum overflows float32", torch.full((9,), 3e38))
    check_finite("sum overflows float16", torch.full((9,), 6e4, dtype=torch.float16))
    with pytest.raises(BadInput, match="1 values"):
        check_finite("w", torch.tensor([1.0, 1e300], dtype=torch.float64))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0).expand(1, 1),
        torch.arange(3.0)[::3],
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(8.0)[::2],
        torch.tensor(1.5),
        torch.zeros(0, 3),
    ],
)
def test_octets_of_any_strides(tensor):
    assert octets(tensor).numpy().tobytes() == tensor.numpy().tobytes()


def test_dtype_names_are_inverse():
    for dtype in (*FLOATS, torch.int8, torch.bool, torch.complex64):
        assert dtype_of(dtype_name(dtype)) == dtype
    with pytest.raises(KeyError):
        dtype_of("float31")
