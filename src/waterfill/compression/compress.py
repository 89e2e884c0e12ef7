"""From tensors to parts at one price: what `compress` and `compress_file` share, and `compress` itself."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from waterfill.compression.allocation.budget import Budget
from waterfill.compression.task import Compression, resolve, with_remark
from waterfill.importance import Importance
from waterfill.model.compressed import CompressedModel
from waterfill.part import Spec
from waterfill.progress import Progress


def compress(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    model: "nn.Module | Mapping[str, Tensor]",
    spec: "Spec | str" = "Quantize()",
    *,
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    importance: Mapping[str, Importance] | None = None,
    lossless: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> CompressedModel:
    """Compress a module or a state dict to a budget: bits per weight of the whole file, its bytes, a ratio, or a price.

    importance: by tensor name, what errors cost; without it a relative error costs the same everywhere. That of
    `calibrate` says what errors in all other weights cost too, as in a typical weight of their size. Weights that
    count are all floating-point entries but the running statistics of norms. Without a budget the file gets 4 bits per
    weight, unless the recipe is of fixed rate. lossless: every tensor bit for bit, without a budget.
    Raises BadInput (NaN, shapes), BadRecipe, BudgetError.
    """
    budget = resolve(Budget(bits, size, ratio, price), spec, lossless)
    work = Compression.of(model, "lossless" if lossless else spec, importance, progress)
    work.run.meet(budget, work.original)
    return with_remark(work.model(), work.allowed(budget))
