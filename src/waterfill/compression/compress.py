"""`compress`: a network or a state dict to a budget, with inputs or without."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from waterfill.arithmetic import AsSet, own_arithmetic
from waterfill.assignment import Recipe
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.options import Options
from waterfill.compression.post_training import automatic, compress_with_inputs
from waterfill.compression.task import Task, in_memory, model_of, recipe_of, resolve, with_remark
from waterfill.errors import BadRecipe
from waterfill.importance import Importance
from waterfill.model.compressed import CompressedModel
from waterfill.network.running.forward import Forward
from waterfill.network.running.inputs import Inputs
from waterfill.network.running.wrapped import unwrapped
from waterfill.part import Spec
from waterfill.recipe import DEFAULT_RECIPE


def compress(  # noqa: PLR0913 - budgets exclude one another, and each deserves its own word
    model: "nn.Module | Mapping[str, Tensor]",
    batches: Iterable[Any] | None = None,
    *,
    spec: "Recipe | None" = None,
    ignore: Sequence[str] = (),
    bits: float | None = None,
    size: int | None = None,
    ratio: float | None = None,
    price: float | None = None,
    lossless: bool = False,
    forward: Forward | None = None,
    importance: Mapping[str, Importance] | None = None,
    format: str | None = None,
    options: Options = Options(),
) -> CompressedModel:
    """Compress a network to a budget. A few hundred unlabelled inputs help a lot; none are needed.

    Args:
        model: a module, which is not changed, or without inputs a state dict.
        batches: inputs of the module, gone through several times: a list or a loader of tensors, of tuples of
            arguments, of dicts of them by keyword, or of anything that `forward` takes.
        spec: a spec or its text. None for "Quantize()", or, with inputs, the cheapest, weight by weight, of trellis
            quantization, the same with pruned columns, and two low-rank factors. Or specs by pattern of names, of
            which the first that matches counts: those of a shell (`*` reaches across dots), or regular expressions
            after "re:", for tensors or the modules that hold them. "lossless" keeps what matches bit for bit; what
            nothing matches gets the default. Tied weights take one spec, that of their first name.
        ignore: such patterns, of tensors that are kept bit for bit, whatever else matches them.
        bits: per weight, of the whole file; 4 where no budget is given and the spec has no rate of its own. Weights
            are all floating-point entries but running statistics of norms.
        size: bytes of the file.
        ratio: bytes of the original tensors over bytes of the file.
        price: the water level itself, nats per bit: the Lagrange multiplier.
        lossless: keep every tensor bit for bit; excludes budgets and inputs.
        forward: (model, batch) -> outputs, where a batch is not simply the arguments.
        importance: by tensor name, the cost of errors, as `calibrate` returns it; instead of inputs.
        format: "onnx", "openvino", "gguf" or "compressed-tensors": the budget is that of the file which
            `waterfill.export` makes, and each weight has bits that it holds (docs/exports.md).
        options: progress, threads, memory, and which steps are taken.

    Returns:
        The network in compressed form, for a module of the same class. With inputs and `options.steps.fold` batch norms
        are folded: the layers before them hold their scales, and they hold constants.

    Raises:
        BadInput: weights that are NaN, batches that the model cannot take or that can be read only once.
        BadRecipe: a spec that has no meaning, a pattern that matches nothing or tells tied names apart, or arguments
            that exclude one another.
        BudgetError: a budget below the smallest file, whose bytes the message gives.

    Example:
        >>> small = waterfill.compress(model, inputs.split(32), bits=2)
        >>> small.save("net.wf")
        >>> recipes = {"re:.*mlp.*": "Quantize(states=64)", "*": "Quantize()"}
        >>> small = waterfill.compress(model, spec=recipes, ignore=["lm_head"], bits=3)
    """
    model, budget, options = unwrapped(model), Budget(bits, size, ratio, price), options.written_as(format)
    if isinstance(batches, Spec | str):
        raise BadRecipe(f"{batches!r} stands where inputs belong; a recipe is given by keyword: spec={batches!r}")
    if batches is None:
        if forward is not None:
            raise BadRecipe("forward= says how inputs are run, and there are none: give batches too")
        recipe = recipe_of(DEFAULT_RECIPE if spec is None else spec, ignore, lossless, options)
        with own_arithmetic(), options.shown() as settled:
            work = in_memory(Task.of(model, recipe, importance), settled)
            resolved = resolve(budget, recipe)
            work.meet(resolved)
            return with_remark(model_of(work), work.task.allowed(resolved), work.counted(work.memory))
    if lossless or importance is not None:
        given = "lossless=True needs no inputs" if lossless else "importance= takes the place of inputs"
        raise BadRecipe(f"{given}: leave the batches out")
    inputs = Inputs(batches, AsSet.now(forward))
    with own_arithmetic(), options.shown() as settled:
        return compress_with_inputs(model, inputs, automatic(spec, ignore, options), budget, settled)
