"""The importance as several kinds need it: entry by entry, or as a linear map."""

import torch
from torch import Tensor

from waterfill.importance import Importance


def row_weights(importance: Importance, rows: int) -> Tensor:
    """The output weights g, [rows] (float32)."""
    return importance.rows.float().expand(rows)


def column_weights(importance: Importance, cols: int) -> Tensor:
    """The diagonal of A, [cols] (float32)."""
    if importance.gram is None:
        return importance.diagonal.float().expand(cols)
    return importance.gram.float().diagonal().repeat(cols // len(importance.gram))


def entry_weights(importance: Importance, rows: int, cols: int) -> Tensor:
    """What a squared error of each entry costs when errors do not correlate: g_o * A_ii, [rows, cols] (float32)."""
    return torch.outer(row_weights(importance, rows), column_weights(importance, cols))


def correlates(importance: Importance, cols: int) -> bool:
    """Whether there is a Gram matrix of data over all columns, beyond that of one spatial kernel."""
    return importance.gram is not None and len(importance.gram) == cols > importance.positions


def times_gram(importance: Importance, matrix: Tensor) -> Tensor:
    """`matrix` [rows, cols] times A; a Gram matrix of data has its damping added.

    Where values are solved for, few inputs would otherwise leave directions in which they may run away for nothing.
    """
    if importance.gram is None:
        return matrix * importance.diagonal.to(matrix)
    folded = matrix.reshape(matrix.shape[0], -1, len(importance.gram))
    image = (folded @ importance.gram.to(matrix)).reshape(matrix.shape)
    if not correlates(importance, matrix.shape[1]):
        return image
    return image + importance.damping * float(importance.gram.diagonal().double().mean()) * matrix
