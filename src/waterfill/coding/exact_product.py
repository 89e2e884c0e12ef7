"""The product of two matrices in float32, defined to the bit: what BLAS makes of it depends on the processor.

Each entry is (((0 + u_0 v_0) + u_1 v_1) + u_2 v_2) + ..., every product and every sum rounded to float32, none of them
fused. The NumPy form is the specification; the compiled one does the same to many entries at once.
"""

import numpy as np

from waterfill.coding import native


def exact_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left [rows, rank] times right [rank, cols], all float32; zeros for rank 0.

    What leaves the range of float32 becomes an infinity or NaN, as IEEE 754 has it, without a warning.
    """
    out = np.zeros((left.shape[0], right.shape[1]), np.float32)
    if native.core is not None:
        native.core.exact_product(np.ascontiguousarray(left), np.ascontiguousarray(right), out)
        return out
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for k in range(left.shape[1]):
            out += left[:, k : k + 1] * right[k]
    return out
