"""How near the automatic choice comes to the best single kind of part and the best sum, at three budgets.

For each network the price is that at which `Quantize(states=64)` meets the budget, the importance that of the same
inputs as in `post_training.py`. At this price every weight is fitted under every recipe, and what it costs, D + price *
bits, is added up. One price for all is the best way to share bits out (docs/theory.md), so recipes whose costs differ
by so many nats differ by that over the price in bits at equal distortion. It can be told to a thousandth; measured
divergences could not tell, as they scatter by a fifth with where codes happen to fall. D counts its damping.

    python benchmarks/choice.py [--networks LeNet-300-100,ResNet-20] [--bits 3,2,1.5]
"""

import argparse
import time
from typing import Any

import torch
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish
from lib.networks import networks

import waterfill
from waterfill.calibration.calibrate import calibrate
from waterfill.compression.allocation.budget import Budget
from waterfill.compression.allocation.weight import Weight
from waterfill.compression.options import Options
from waterfill.compression.post_training import DEFAULT_SPEC
from waterfill.compression.store import MemoryStore
from waterfill.compression.task import Compression, Task, in_memory
from waterfill.network.batch_norm import fold_batch_norm
from waterfill.part import Choice, cost, terms_of

BITS = (3.0, 2.0, 1.5)
INPUTS, STORIES = 256, 64  # of stories each is a batch of its own
LEADING = "Quantize(states=64)"
SINGLE = ("Quantize()", "Codebook()", "Prune()")
SUMS = (f"{LEADING} + Prune()", f"{LEADING} + LowRank()")
NEAR = 2.0
"""Percent of the bits, within which the automatic choice must be of the best."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    with_data = [name for name in networks() if calibrated(name)]
    parser.add_argument("--networks", default=",".join(with_data), help="names, separated by commas")
    parser.add_argument("--bits", default=",".join(f"{bits:g}" for bits in BITS), help="bits per weight, by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, details = [], []
    for name in options.networks.split(","):
        work = compression(name)
        for bits in map(float, options.bits.split(",")):
            totals, seconds = costs(work, bits)
            row = compared(name, bits, totals)
            print(f"{name} at {bits:g} bits: {row[-1]:+.2f} % from the best", flush=True)
            rows.append(row)
            details += [[name, bits, recipe, *totals[recipe], seconds[recipe]] for recipe in totals]
        write(rows, details, options, partial={row[0] for row in rows} != set(with_data))


def write(rows: list[list[Any]], details: list[list[Any]], options: argparse.Namespace, *, partial: bool) -> None:
    """The tables of what is known."""
    columns = {"network": "", "bits": ".3g", "best single part": "", "%": "+.2f", "best sum": "", "% ": "+.2f"}
    columns |= {"automatic, %": "+.2f", "over the best, %": "+.2f"}
    about = f"Bits at equal distortion, in % over {LEADING}"
    every = {"network": "", "bits": "", "recipe": "", "bits spent": ".0f", "cost / price": ".0f", "s": ".1f"}
    far = claim(
        "automatic choice over the best recipe: most, % of the bits",
        max(row[-1] for row in rows),
        NEAR,
        ".2f",
        at_most=True,
    )
    tables = {
        "choice": Table(about, columns, rows),
        "costs": Table("Every recipe: bits spent, and cost in bits at the price", every, details),
        "claims": claims_table([far]),
    }
    finish("choice", tables, vars(options), partial=partial, shown=("choice", "claims"))


def calibrated(name: str) -> bool:
    """Whether data belong to a network."""
    return name != "GPT-2 attention"


def compression(name: str) -> Compression[MemoryStore]:
    """A network with its norms folded, on its way, with what errors cost."""
    folder = data_folder()
    model = model_of(name, folder, networks()[name].state(folder))
    batches = calibration_batches(name, folder, STORIES if name.startswith("Llama") else INPUTS)
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        model = fold_batch_norm(model, batches[0])
    return in_memory(Task.of(model, LEADING, calibrate(model, batches, importance="auto", probes=2)), Options())


def costs(work: Compression[MemoryStore], bits: float) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """By recipe: bits and cost over price of all weights; and seconds."""
    size = work.task.allowed(Budget(bits=bits))
    assert size is not None
    price = work.run.price_for(size)
    weights = [weight for weight in work.weights if not weight.reason]
    totals: dict[str, tuple[float, float]] = {}
    seconds: dict[str, float] = {}
    terms = [repr(term) for term in terms_of(Choice, waterfill.parse(DEFAULT_SPEC))]
    found: dict[str, list[tuple[float, float]]] = {}
    for recipe in dict.fromkeys((*terms, *SINGLE, *SUMS)):
        began = time.perf_counter()
        found[recipe] = [fitted(weight, recipe, price) for weight in weights]
        seconds[recipe] = time.perf_counter() - began
        totals[recipe] = summed(found[recipe])
    best = [min((found[term][i] for term in terms), key=lambda pair: pair[1]) for i in range(len(weights))]
    totals["automatic"], seconds["automatic"] = summed(best), sum(seconds[term] for term in terms)
    return totals, seconds


def fitted(weight: Weight, recipe: str, price: float) -> tuple[float, float]:
    """Bits of one weight under a recipe, and what it costs over the price."""
    spent = total = 0.0
    for target, importance in weight.matrices(price):
        part = waterfill.parse(recipe).fit(target, importance, price)
        spent += part.bits
        total += cost(part, target, importance, price) / price
    return spent, total


def summed(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(spent for spent, _ in pairs), sum(total for _, total in pairs)


def compared(name: str, bits: float, totals: dict[str, tuple[float, float]]) -> list[Any]:
    """A row of the table."""
    unit = totals[LEADING][0]
    over = {recipe: 100 * (total - totals[LEADING][1]) / unit for recipe, (_, total) in totals.items()}
    single = min((r for r in over if "+" not in r and r != "automatic"), key=lambda r: over[r])
    several = min((r for r in over if "+" in r), key=lambda r: over[r])
    own = over["automatic"]
    return [name, bits, single, over[single], several, over[several], own, own - min(over[single], over[several])]


if __name__ == "__main__":
    main()
