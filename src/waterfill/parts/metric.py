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


def times_gram(importance: Importance, matrix: Tensor) -> Tensor:
    """`matrix` [rows, cols] times A."""
    if importance.gram is None:
        return matrix * importance.diagonal.to(matrix)
    folded = matrix.reshape(matrix.shape[0], -1, len(importance.gram))
    return (folded @ importance.gram.to(matrix)).reshape(matrix.shape)
