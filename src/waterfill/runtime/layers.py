"""Layers that run from compressed weights, in the place of PyTorch's own."""

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.leaves import Term


class PackedLayer(nn.Module):
    """A layer whose weight is a `Term`. It has no gradients and does not learn."""

    def __init__(self, term: Term) -> None:
        super().__init__()
        self.term = term
        self.training = False

    @property
    def weight(self) -> Tensor:
        """The weight, restored: for code that asks for its type or its device, or for its values."""
        return self.term.restored()

    def train(self, mode: bool = True) -> "PackedLayer":
        """Raises BadInput for training mode."""
        if mode:
            raise BadInput("a packed network does not learn; train it with waterfill.learn, save it, and pack the file")
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        return f"{self.term.cols} to {self.term.rows}, {self.term.words}"


class PackedLinear(PackedLayer):
    """y = x W^T + b for x [..., in]; W is `term` [out, in], or its transpose where the layer stores it so (`Conv1D` of
    transformers)."""

    bias: nn.Parameter | None

    def __init__(self, term: Term, bias: nn.Parameter | None) -> None:
        super().__init__(term)
        self.register_parameter("bias", bias)
        self.in_features, self.out_features = term.cols, term.rows

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.term(x)
        return made if self.bias is None else made + self.bias.to(made.dtype)


class PackedEmbedding(PackedLayer):
    """Rows of `term` [tokens, features], as the restored matrix has them; only those asked for are restored."""

    _like: Tensor

    def __init__(self, term: Term, like: nn.Embedding) -> None:
        super().__init__(term)
        self.num_embeddings, self.embedding_dim, self.padding_idx = term.rows, term.cols, like.padding_idx
        self.max_norm, self.norm_type = like.max_norm, like.norm_type
        self.register_buffer("_like", torch.empty(0, dtype=like.weight.dtype, device="cpu"), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        if index.dtype not in (torch.int64, torch.int32):
            raise BadInput(f"tokens are int64 or int32, and these are {index.dtype}")
        if operators.runs_here(index):
            operators.check_rows(index, self.num_embeddings)
        rows = self.term.restored(index.reshape(-1).long())
        if self.max_norm is not None:
            norms = rows.norm(self.norm_type, dim=1, keepdim=True)
            rows = torch.where(norms > self.max_norm, rows * (self.max_norm / (norms + 1e-7)), rows)
        return rows.reshape(*index.shape, self.embedding_dim).to(self._like.dtype)
