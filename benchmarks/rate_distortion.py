"""How far real files are above the rate-distortion function: sources of a million entries, bits counted in bytes.

Gaussian and Laplace entries are quantized at prices that give the rates wanted, encoded, and compared with the Gaussian
R(D) = 1/2 log2(variance / D), and the Laplace ones with their own (`laplace.py`). Then the columns correlate: Gaussian
rows under the Gram matrix of a layer's inputs, of ResNet-56 and of the Llama, compared with reverse water-filling over
its eigenvalues. A recipe that this release does not know is left out, and said to be.

    python benchmarks/rate_distortion.py [--quick] [--recipes "Quantize(),Quantize(states=8)"]
"""

import argparse
import functools
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from lib.calibration_data import calibration_batches, model_of
from lib.common import Table, claim, claims_table, data_folder, finish
from lib.networks import networks
from opponents.laplace import laplace_rate
from torch import Tensor

import waterfill
from waterfill import Importance, Spec
from waterfill.calibration.calibrate import Calibration
from waterfill.errors import BadRecipe
from waterfill.theory import NetworkLimit, Spectrum, gaussian_rate

SCALAR, TRELLIS = "Quantize()", "Quantize(states=8)"
RECIPES = (SCALAR, TRELLIS, "Quantize(states=64)", "Quantize(states=256)")
RATES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
SIDE = 1000  # rows and columns of a source
BARS = {SCALAR: 0.26, TRELLIS: 0.09, "Quantize(states=64)": 0.06, "Quantize(states=256)": 0.045}
LAYERS = {
    "ResNet-56": ("layer2.4.conv2.weight", "layer3.4.conv2.weight"),
    "Llama 260K": ("layers.2.feed_forward.w2.weight",),
}
CORRELATED = (1.0, 2.0, 3.0, 4.0)
EXACT = 1e-6
CORRELATED_BAR = 0.15
INPUTS = 256
_SEARCH = 1 << 17  # entries on which the price of a rate is found
_HALVINGS = 12
_CLOSE = 0.003


@dataclass(frozen=True)
class Found:
    """One fit: bits per entry of the encoded part, the least bits at its distortion, and what was fitted to what."""

    source: str
    recipe: str
    wanted: float
    bits: float
    error: float
    bound: float
    own: float | None
    seconds: float

    @property
    def above(self) -> float:
        """Bits above the bound."""
        return self.bits - self.bound


def main() -> None:
    options = parse()
    data_folder()  # without it half of the figures would be missing: say so at once
    recipes = [recipe for recipe in options.recipes if known(recipe)]
    entries = SIDE * (SIDE // 8 if options.quick else SIDE)
    sources = [f for name in ("Gaussian", "Laplace") for f in of_source(name, recipes, entries)]
    inputs = INPUTS // 4 if options.quick else INPUTS
    correlated = list(of_layers(recipes, entries, inputs))
    partial = options.quick or tuple(recipes) != RECIPES
    tables = {
        "claims": claims_table(claims(sources, correlated)),
        "sources": by_rate("Bits per entry above the Gaussian rate-distortion function", sources),
        "laplace": by_rate("Bits per entry of a Laplace source above its own rate-distortion function", own(sources)),
        "correlated": by_rate("Bits per entry above reverse water-filling, correlated columns", correlated),
        "points": points([*sources, *correlated]),
    }
    finish(
        "rate_distortion",
        tables,
        {"entries": entries, "recipes": ", ".join(recipes), "inputs": inputs},
        partial=partial,
        shown=tables,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the entries, a quarter of the inputs")
    parser.add_argument(
        "--recipes",
        type=lambda text: re.split(r",\s*(?=\w+\()", text),
        default=list(RECIPES),
        help="separated by commas",
    )
    return parser.parse_args()


def known(recipe: str) -> bool:
    """Whether this release has it; said where it has not."""
    try:
        waterfill.parse(recipe)
    except BadRecipe as error:
        print(f"left out: {recipe}: {error}")
        return False
    return True


def draw(name: str, entries: int) -> Tensor:
    """A matrix of SIDE columns and variance 1."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(entries // SIDE, SIDE, generator=random, dtype=torch.float64)
    if name == "Laplace":  # the same ranks
        tail = torch.special.erfc(x.abs() / math.sqrt(2))
        x = -x.sign() * tail.clamp_min(1e-300).log()
    return (x / x.square().mean().sqrt()).float()


def of_source(name: str, recipes: Iterable[str], entries: int) -> Iterable[Found]:
    """Every recipe at every rate on one source."""
    x = draw(name, entries)
    sample = x[: max(1, _SEARCH // x.shape[1])]
    for text in recipes:
        spec = waterfill.parse(text)
        for rate in RATES:
            price = price_of(spec, sample, rate)
            bits, error, seconds = fitted(spec, x, Importance(), price)
            mse = 2 * error / x.numel()
            exact = laplace_rate(mse) if name == "Laplace" else None
            yield shown(Found(name, text, rate, bits, mse, gaussian_rate(1.0, mse), exact, seconds))


def price_of(spec: Spec, x: Tensor, rate: float) -> float:
    """The price, nats per bit, at which these entries take about so many bits each; by bisection of its logarithm."""
    low, high = 4.0 ** -(rate + 1.5), 4.0 ** (1 - rate)
    for _ in range(_HALVINGS):
        price = math.sqrt(low * high)
        bits = fitted(spec, x, Importance(), price)[0]
        if abs(bits - rate) < _CLOSE * rate:
            break
        low, high = (price, high) if bits > rate else (low, price)
    return price


def fitted(spec: Spec, x: Tensor, importance: Importance, price: float) -> tuple[float, float, float]:
    """Bits per entry of the bytes, distortion in nats, seconds of the fit."""
    began = time.perf_counter()
    part = spec.fit(x, importance, price)
    seconds = time.perf_counter() - began
    return 8 * len(part.encode()) / x.numel(), importance.distortion(x - part.dense()), seconds


def of_layers(recipes: Sequence[str], entries: int, inputs: int) -> Iterable[Found]:
    """Every recipe at every rate on Gaussian rows under the Gram matrices of real inputs."""
    for network, layers in LAYERS.items():
        found = importances(network, inputs)
        for layer in layers:
            gram = found[layer].gram
            assert gram is not None
            importance = Importance(gram=gram, damping=EXACT)  # the matrix itself is the source, not a sample of one
            x = torch.randn(entries // len(gram), len(gram), generator=torch.Generator().manual_seed(0))
            limit = NetworkLimit({layer: (Spectrum.of(x, importance),)})
            for text in recipes:
                for rate in CORRELATED:
                    bits, nats, seconds = fitted(waterfill.parse(text), x, importance, limit.at_rate(rate).price)
                    bound = limit.at_nats(nats).rate
                    source = f"{network}, {layer.removesuffix('.weight')}, {len(gram)} columns"
                    yield shown(Found(source, text, rate, bits, 2 * nats / x.numel(), bound, None, seconds))


@functools.cache
def importances(network: str, inputs: int) -> Calibration:
    """What errors cost in every weight of a network, by so many of its inputs."""
    folder = data_folder()
    model = model_of(network, folder, networks()[network].state(folder))
    return waterfill.calibrate(model, calibration_batches(network, folder, inputs))


def shown(found: Found) -> Found:
    """The fit, after a line about it."""
    figures = f"{found.bits:.3f} bits, {found.above:+.4f} above the bound, {found.seconds:.1f} s"
    print(f"{found.source}, {found.recipe}: {figures}", flush=True)
    return found


def own(found: Iterable[Found]) -> list[Found]:
    """Those with a rate-distortion function of their own, against that."""
    return [Found(**{**vars(f), "bound": f.own}) for f in found if f.own is not None]


def claims(sources: Sequence[Found], correlated: Sequence[Found]) -> list[list[object]]:
    """The bars of the issue, each with the largest gap found."""
    rows = []
    for recipe, bar in BARS.items():
        gaps = [f.above for f in sources if f.recipe == recipe and f.wanted >= 1]
        if gaps:
            rows.append(claim(f"{recipe}: most bits above R(D), 1 to 5 bits", max(gaps), bar, ".4f", at_most=True))
    plain = {(f.source, f.wanted): f.above for f in sources if f.recipe == SCALAR}
    low = [f.above - plain[f.source, f.wanted] for f in sources if f.wanted < 1 and (f.source, f.wanted) in plain]
    if len(low) > len(RATES):
        rows.append(claim("trellis at 0.25 and 0.5 bits: most bits above scalar", max(low), 0.001, ".4f", at_most=True))
    for recipe in BARS:
        gaps = [f.above for f in correlated if f.recipe == recipe and f.wanted >= 2]
        if gaps and recipe != SCALAR:
            what = f"{recipe}, correlated columns: most bits above the bound, 2 to 4 bits"
            rows.append(claim(what, max(gaps), CORRELATED_BAR, ".4f", at_most=True))
    return rows


def by_rate(title: str, found: Sequence[Found]) -> Table:
    """A row for every source and rate, a column for every recipe."""
    recipes = list(dict.fromkeys(f.recipe for f in found))
    gaps = {(f.source, f.wanted, f.recipe): f.above for f in found}
    keys = list(dict.fromkeys((f.source, f.wanted) for f in found))
    rows = [[*key, *(gaps.get((*key, recipe)) for recipe in recipes)] for key in sorted(keys, key=lambda k: k[0])]
    return Table(title, {"source": "", "bits": "g"} | dict.fromkeys(recipes, ".4f"), rows)


def points(found: Iterable[Found]) -> Table:
    """Every fit as it was."""
    columns = {
        "source": "",
        "recipe": "",
        "wanted": "g",
        "bits": ".4f",
        "mean error": ".4g",
        "bound": ".4f",
        "s": ".2f",
    }
    rows = [[f.source, f.recipe, f.wanted, f.bits, f.error, f.bound, f.seconds] for f in found]
    return Table("Every fit: bits of its bytes, weighted mean squared error, least bits at that error", columns, rows)


if __name__ == "__main__":
    main()
