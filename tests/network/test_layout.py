"""How tensors become matrices and come back."""

import pytest
import torch
from tests.support.networks import same

from waterfill.dtypes import dtype_name, dtype_of, octets
from waterfill.network.layout import KERNEL, MATRIX, RAW, STACK, VECTOR, layout_of

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


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


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e8m0fnu, torch.uint8])
def test_what_cannot_be_rounded_is_raw(dtype):
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


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")  # PyTorch's word for its own type
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32])
@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (3, 2, 3, 3)])
def test_a_complex_entry_is_two_columns(shape, dtype):
    tensor = torch.randn(shape, dtype=torch.complex64).to(dtype)
    layout = layout_of(shape, dtype)
    (matrix,) = layout.split(tensor)
    assert matrix.dtype == torch.float32 and tuple(matrix.shape) == layout.matrix
    assert matrix.numel() == layout.numbers == 2 * tensor.numel()
    assert matrix.reshape(-1)[:2].tolist() == [float(tensor.reshape(-1)[0].real), float(tensor.reshape(-1)[0].imag)]
    assert same(layout.join([matrix]), tensor)


def test_a_conjugate_that_waits_is_split_as_what_it_stands_for():
    tensor = torch.randn(4, 6, dtype=torch.complex64).conj()
    assert torch.equal(layout_of((4, 6), tensor.dtype).split(tensor)[0][:, 1::2], tensor.imag)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize(
    ("dtype", "edge"),
    [(torch.float16, 65504), (torch.float8_e4m3fn, 448), (torch.float8_e5m2, 57344), (torch.complex32, 65504)],
)
def test_what_leaves_the_range_of_a_narrow_type_stays_at_its_edge(dtype, edge):
    layout = layout_of((2, 4), dtype, MATRIX)
    joined = layout.join([torch.full(layout.matrix, -1e5)])
    parts = torch.view_as_real(joined).float() if dtype.is_complex else joined.float()
    assert bool((parts == -edge).all())


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
