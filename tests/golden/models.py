"""Write the golden models of the present format: `python -m tests.golden.models`, once for every version of the format.

Each is a whole file, and beside it the tensors that every later release must read from it, with their types and shapes
and a digest of their bytes. As in `make.py`, what is there is never overwritten.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

import waterfill
from waterfill.dtypes import dtype_name, octets

FOLDER = Path(__file__).parent / "models-1"


def digests(tensors: dict[str, Tensor]) -> dict[str, list[object]]:
    """Type, shape and SHA-256 of each tensor's bytes."""
    return {
        name: [dtype_name(t.dtype), list(t.shape), hashlib.sha256(octets(t).numpy().tobytes()).hexdigest()]
        for name, t in tensors.items()
    }


def network() -> nn.Module:
    """Convolutions, a recurrent layer, stacked matrices, a tied pair, buffers; always the same."""
    torch.manual_seed(11)
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "norm": nn.BatchNorm2d(8),
            "gru": nn.GRU(6, 5),
            "embed": nn.Embedding(20, 6),
            "head": nn.Linear(6, 20),
        }
    )
    net["head"].weight = net["embed"].weight
    experts = torch.randn(3, 24, 20).sign() / 2 + torch.randn(3, 24, 1) * torch.randn(3, 1, 20)  # what a sum is for
    net.register_parameter("experts", nn.Parameter(experts))
    net.register_buffer("mask", torch.rand(4, 7) < 0.3)
    return net


def mixed_types() -> dict[str, Tensor]:
    """A tensor of every common number type, odd values among them."""
    torch.manual_seed(12)
    values = torch.randn(9, 14)
    values[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn)
    found = {dtype_name(dtype): values.to(dtype) for dtype in dtypes}
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    return found | {dtype_name(dtype): torch.arange(30).reshape(5, 6).to(dtype) for dtype in whole}


def models() -> dict[str, waterfill.CompressedModel]:
    """By the name of its file."""
    net = network()
    recipes = {
        "quantized": "Quantize()",
        "fixed rate": "Quantize(bits=4, group=8, symmetric=False)",
        "codebook": "Codebook(levels=8)",
        "sum": "LowRank(rank=1) + Codebook(values='binary')",
        "pruned": "Prune(keep=0.2, values=Codebook(levels=4))",
        "low rank": "LowRank(rank=2)",
        "sampled": "Sampled(seed=5)",
        "plain numbers": "Dense(format='bfloat16')",
    }
    found = {name: waterfill.compress(net, spec=recipe, price=1e-3) for name, recipe in recipes.items()}
    return found | {
        "lossless": waterfill.compress(mixed_types(), lossless=True),
        "budget": waterfill.compress(net, bits=6),
        "empty": waterfill.compress({}, price=1e-3),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, model in models().items():
        path = FOLDER / f"{name.replace(' ', '-')}.wf"
        if path.exists():
            continue
        model.save(path)
        recorded = {"tensors": digests(model.state_dict()), "aliases": model.aliases, "notes": model.notes}
        path.with_suffix(".json").write_text(json.dumps(recorded, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
