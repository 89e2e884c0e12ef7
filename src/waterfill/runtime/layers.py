"""Layers that run from compressed weights, in the place of PyTorch's own."""

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.leaves import Term


class PackedLayer(nn.Module):
    """A layer whose weight is a `Term`. It has no gradients and does not learn."""

    _like: Tensor

    def __init__(self, term: Term, like: nn.Module, *, turned: bool = False) -> None:
        """like: the layer in whose place it stands. turned: whether the weight of that is the transpose of `term`."""
        super().__init__()
        weight: Tensor = like.weight  # type: ignore[assignment]  # all of these layers have one
        self.register_buffer("_like", torch.empty(0, dtype=weight.dtype, device="cpu"), persistent=False)
        self.term, self.turned, self.training = term, turned, False

    @property
    def weight(self) -> Tensor:
        """The weight, restored anew each time: for code that asks for its type, its device or its values."""
        weight = self.term.restored().to(self._like.dtype)
        return weight.T if self.turned else weight

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

    def __init__(self, term: Term, like: nn.Module, *, turned: bool = False) -> None:
        super().__init__(term, like, turned=turned)
        self.register_parameter("bias", getattr(like, "bias", None))
        self.in_features, self.out_features = term.cols, term.rows

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.term(x)
        return made if self.bias is None else made + self.bias.to(made.dtype)


class PackedEmbedding(PackedLayer):
    """Rows of `term` [tokens, features], as the restored matrix has them; only those asked for are restored."""

    def __init__(self, term: Term, like: nn.Embedding) -> None:
        super().__init__(term, like)
        self.num_embeddings, self.embedding_dim, self.padding_idx = term.rows, term.cols, like.padding_idx
        self.max_norm, self.norm_type = like.max_norm, like.norm_type

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
