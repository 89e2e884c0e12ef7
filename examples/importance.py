"""What data are worth: with the Gram matrix of a layer's inputs, errors fall where they do no harm.

python examples/importance.py
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import waterfill
from waterfill import Importance


def gram_matrices(model: nn.Sequential, inputs: Tensor) -> dict[str, Tensor]:
    """A = E[x x^T] of the inputs of every linear layer, [cols, cols], by the name of its weight."""
    grams: dict[str, Tensor] = {}

    def remember(name: str, x: Tensor) -> None:
        grams[f"{name}.weight"] = x.T @ x / len(x)

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: remember(name, given[0]))
        for name, layer in model.named_children()
        if isinstance(layer, nn.Linear)
    ]
    with torch.inference_mode():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return grams


def moved(model: nn.Sequential, inputs: Tensor, importance: Mapping[str, Importance] | None, bits: float) -> float:
    """How far the outputs move, relative to their norm, when the model is compressed to so many bits per weight."""
    wanted = model(inputs)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(waterfill.compress(model, bits=bits, importance=importance).state_dict())
    found = model(inputs)
    model.load_state_dict(weights)
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def main(width: int = 256, images: int = 2000) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 32))
    shared = torch.randn(2 * images, width // 8) @ torch.randn(width // 8, width) / (width // 8) ** 0.5
    inputs = shared + 0.3 * torch.randn(2 * images, width)  # correlated, as real inputs are
    known, unseen = inputs.split(images)

    grams = gram_matrices(model, known)
    importance = {
        name: Importance(rows=1 / (model.get_parameter(name) @ gram * model.get_parameter(name)).sum(), gram=gram)
        for name, gram in grams.items()
    }  # an error counts relative to the energy of the layer's outputs
    for bits in (4, 3, 2):
        plain, informed = (moved(model, unseen, given, bits) for given in (None, importance))
        print(f"{bits} bits per weight: outputs move by {100 * plain:.2f} % without data, {100 * informed:.2f} % with")


if __name__ == "__main__":
    main()
