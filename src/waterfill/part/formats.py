"""The files of other tools that a network is exported to: the forms that codes have there, and the bytes they take.

An export (`waterfill.export`) writes codes of these forms as they are. The bytes here are those that it takes, or a few
more: how a matrix is used is not known while it is compressed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from waterfill.part.product import Codes, Product

_INDEX = 4  # bytes
_NAMED = 160  # bytes of the name, the place and the shape of a tensor


@dataclass(frozen=True)
class Form:
    """Codes of so many bits. group: columns that share a scale, 0 for a whole row. symmetric: without zero points."""

    bits: int
    group: int = 0
    symmetric: bool = True


@dataclass(frozen=True)
class FileFormat:
    """How a format holds tensors, and which forms are worth trying.

    matrices, kernels: forms of matrices that are multiplied with, and of those of convolutions. scale: bytes of one.
    few: scales up to which each takes 4 bytes. blocks: columns of what a row is cut into, filled up; () where nothing
    is. whole: whether groups have to fill a row; multiple: of which its columns have to be one. dense: bytes of an
    entry of a matrix that has no codes, 0 for those of its type; vector: of any other. named: bytes beside; each:
    beside codes, for what restores a matrix; by_column: of a column of groups.
    """

    matrices: tuple[Form, ...]
    kernels: tuple[Form, ...]
    scale: int = 2
    few: int = 0
    blocks: tuple[int, ...] = ()
    whole: bool = False
    multiple: int = 1
    dense: int = 4
    vector: int = 4
    named: int = 0
    each: int = 0
    by_column: int = 0

    def forms(self, cols: int, kernel: bool) -> list[Form]:
        """The forms that a matrix of so many columns can have."""
        if cols % self.multiple or not cols:
            return []
        all_of = self.kernels if kernel else self.matrices
        return [form for form in all_of if not form.group or not (self.whole and cols % form.group)]

    def form_of(self, codes: Codes) -> Form:
        """The form in which codes are written: the fewest bits that hold them."""
        edges = [*_edges(codes.codes), *([] if codes.zeros is None else _edges(codes.zeros))]
        need = 1 + max((-min(edges) - 1).bit_length() if min(edges) < 0 else 0, max(*edges, 0).bit_length())
        group = codes.group if codes.scales.shape[1] > 1 else 0
        widths = sorted({form.bits for form in (*self.matrices, *self.kernels)} | {8})
        return Form(next((bits for bits in widths if bits >= need), need), group, codes.zeros is None)

    def codes_bytes(self, form: Form, shape: tuple[int, int], kernel: bool) -> int:
        """Bytes of codes [rows, cols] and their scales."""
        (rows, cols), scale = shape, self.scale * (1 if form.symmetric else 2)
        beside = (self.by_column * cols if form.group else 0) + self.each
        sizes = [] if kernel else [size for size in self.blocks if not form.group or form.group % size == 0]
        if sizes:
            tried = [max(sizes)] if form.group else sizes
            return rows * min(-(-cols // size) * (size * form.bits // 8 + scale) for size in tried) + beside
        groups = -(-cols // form.group) if form.group else 1
        scale = max(scale, 4) if rows * groups <= self.few else scale
        return rows * (-(-cols * form.bits // 8) + groups * scale) + beside

    def dense_bytes(self, entries: int, itemsize: int, matrix: bool) -> int:
        """Bytes of a tensor without codes. itemsize: bytes of an entry in the original."""
        return entries * ((self.dense if matrix else self.vector) or itemsize) + self.named

    def bytes_of(self, product: Product, shape: tuple[int, int], kernel: bool, itemsize: int) -> int:
        """Bytes of a matrix [rows, cols] in the form of a product: its own one, or that of a sample of it."""
        if isinstance(product, Codes) and product.codes.numel() and product.columns is None:
            return self.codes_bytes(self.form_of(product), shape, kernel)
        return self.dense_bytes(shape[0] * shape[1], itemsize, matrix=True)


def _edges(values: Tensor) -> list[int]:
    return [int(edge) for edge in values.aminmax()]


_BY_FOUR = (Form(4, 32), Form(4, 128), Form(8, 128))
FORMATS: Mapping[str, FileFormat] = MappingProxyType(
    {
        "onnx": FileFormat(
            matrices=(Form(2, 32), *_BY_FOUR),
            kernels=tuple(Form(bits) for bits in range(2, 8)),
            blocks=(256, 128, 64, 32, 16),
            by_column=_INDEX,
            each=1400,
        ),
        "openvino": FileFormat(
            matrices=(*_BY_FOUR, Form(4), Form(8)),
            kernels=(Form(2), Form(4), Form(8)),
            few=1 << 10,
            whole=True,
            each=3300,
        ),
        "gguf": FileFormat(
            matrices=(Form(2, 256), Form(4, 32), Form(4, 32, False), Form(5, 32), Form(8, 32)),
            kernels=(),
            multiple=32,
            dense=2,
            named=_NAMED,
            each=_NAMED,
        ),
        "compressed-tensors": FileFormat(
            matrices=(*_BY_FOUR, Form(8)),
            kernels=(),
            whole=True,
            dense=0,
            vector=0,
            named=_NAMED,
            each=3 * _NAMED,
        ),
    }
)
"""By name, the formats that budgets know. 2 bits of a TQ2_0 block stand for groups of 256, which fill a row."""
