"""Linear layers and embeddings that run from compressed weights."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from waterfill.errors import BadInput
from waterfill.runtime import operators
from waterfill.runtime.layers.base import PackedLayer
from waterfill.runtime.leaves import Term


class PackedMatrix(PackedLayer):
    """A layer whose only weight is a term, or its transpose."""

    def __init__(self, term: Term, like: nn.Module, *, turned: bool = False) -> None:
        """like: the layer in whose place it stands. turned: whether the weight of that is the transpose of `term`."""
        super().__init__(like.weight.dtype)  # type: ignore[arg-type]  # all of these layers have a weight
        self.term, self.turned = term, turned

    def terms(self) -> Iterator[Term]:
        yield self.term

    @property
    def weight(self) -> Tensor:
        """The weight, restored anew each time: for code that asks for its type, its device or its values."""
        weight = self.term.restored().to(self._like.dtype)
        return weight.T if self.turned else weight


class PackedLinear(PackedMatrix):
    """y = x W^T + b for x [..., in]; W is `term` [out, in], or its transpose where the layer stores it so (`Conv1D` of
    transformers). In a block of autocast, inputs are taken in its type, as those of a linear layer are."""

    bias: nn.Parameter | None

    def __init__(self, term: Term, like: nn.Module, *, turned: bool = False) -> None:
        super().__init__(term, like, turned=turned)
        self.register_parameter("bias", getattr(like, "bias", None))
        self.in_features, self.out_features = term.cols, term.rows

    def multiplications(self, x: Tensor, y: Tensor) -> int:
        return y.numel() // max(1, self.out_features) * self.term.products

    def forward(self, x: Tensor) -> Tensor:
        device = "cpu" if x.is_cpu else x.device.type
        if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        term, bias = self._modules["term"], self._parameters["bias"]  # found at once, unlike attributes
        assert term is not None
        made: Tensor = term.forward(x)  # without what PyTorch does around a call: this module's has done it
        return made if bias is None else made.add_(bias.to(made.dtype))


class PackedEmbedding(PackedMatrix):
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
