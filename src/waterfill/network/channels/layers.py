"""The kinds of layers whose channels are known: linear layers, convolutions, embeddings, norms."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from waterfill.network.channels.kind import IN, OUT, Axes, Axis, Kind, entries, positions, spread
from waterfill.network.tracing.im2col import geometry_of, vectors, windows

_MAKES, _READS = Axis(OUT), Axis(IN, reads=True)


class LinearKind(Kind):
    """A layer that multiplies a matrix [rows, cols] with columns of its inputs, and may add a bias [rows].

    turned: its weights are the matrix transposed.
    """

    turned: ClassVar[bool] = False

    def rows_of(self, layer: nn.Module, channels: Tensor) -> Tensor:
        """The rows that make some channels of the outputs."""
        size = self.sizes(layer)[1]
        return entries(Axis(OUT, len(self.matrix(layer)) // size), channels, size)

    def columns_of(self, layer: nn.Module, channels: Tensor) -> Tensor:
        """The columns that are multiplied with some channels of the inputs."""
        each = self.matrix(layer).shape[1] // self.sizes(layer)[0]
        return (channels[:, None] * each + torch.arange(each, dtype=torch.int64, device="cpu")).reshape(-1)

    def plain(self, layer: nn.Module) -> bool:
        """Whether a layer computes what PyTorch's own one does; one that inherits from it may do anything else."""
        own = [getattr(type(layer), name, None) for name in ("forward", "_conv_forward")]
        ours = all(method is None or method.__module__.startswith("torch.nn.") for method in own)
        return ours and not {"forward", "_conv_forward"} & vars(layer).keys()

    def matrix(self, layer: nn.Module) -> Tensor:
        """Its weights as a matrix [rows, cols]; the columns of a channel stand together."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return weight.detach().flatten(1)

    def set_matrix(self, layer: nn.Module, matrix: Tensor) -> None:
        """Write a matrix [rows, cols] into its weights."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        weight.data.copy_(matrix.reshape(weight.shape))

    def columns(self, layer: nn.Module, x: Tensor, generator: torch.Generator, chosen_for: int) -> Tensor:
        """Columns [cols, count] of an input, a sample of them where there are many.

        chosen_for: how many columns the number of samples is chosen for; equal for two networks to be compared.
        """
        return vectors(x, generator, chosen_for)[0]

    def bias_name(self, layer: nn.Module) -> str:
        """The name of the vector [rows] that is added."""
        return "bias"

    def input_dim(self, layer: nn.Module, x: Tensor) -> int:
        return x.ndim - 1

    def products(self, layer: nn.Module, sizes: tuple[int, int]) -> int:
        return sizes[0] * sizes[1]


class Dense(LinearKind):
    """nn.Linear."""

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear)

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.weight.shape[1], layer.weight.shape[0]

    def axes(self, layer: nn.Module) -> dict[str, Axes]:
        return {"weight": (_MAKES, _READS), "bias": (_MAKES,)}

    def attributes(self, layer: nn.Module, sizes: tuple[int, int]) -> dict[str, Any]:
        return {"in_features": sizes[0], "out_features": sizes[1]}


class Turned(LinearKind):
    """The `Conv1D` of transformers: x W + b, W [in, out]."""

    turned = True

    def fits(self, layer: nn.Module) -> bool:
        return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and getattr(layer, "weight", None) is not None

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.weight.shape[0], layer.weight.shape[1]

    def plain(self, layer: nn.Module) -> bool:
        return "forward" not in vars(layer)

    def axes(self, layer: nn.Module) -> dict[str, Axes]:
        return {"weight": (_READS, _MAKES), "bias": (_MAKES,)}

    def attributes(self, layer: nn.Module, sizes: tuple[int, int]) -> dict[str, Any]:
        return {"nx": sizes[0], "nf": sizes[1]}

    def matrix(self, layer: nn.Module) -> Tensor:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return weight.detach().T

    def set_matrix(self, layer: nn.Module, matrix: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        weight.data.copy_(matrix.T)


class Convolution(LinearKind):
    """nn.Conv1d, Conv2d, Conv3d; where they are grouped, both sides of a group go together."""

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.weight.shape[1] * layer.groups, layer.weight.shape[0]

    def axes(self, layer: Any) -> dict[str, Axes]:
        reads = _READS if layer.groups == 1 else None
        return {"weight": (_MAKES, reads, *[None] * len(layer.kernel_size)), "bias": (_MAKES,)}

    def attributes(self, layer: Any, sizes: tuple[int, int]) -> dict[str, Any]:
        groups = layer.groups if layer.groups == 1 else spread(layer.groups, layer.out_channels, sizes[1])
        return {"in_channels": sizes[0], "out_channels": sizes[1], "groups": groups}

    def columns(self, layer: Any, x: Tensor, generator: torch.Generator, chosen_for: int) -> Tensor:
        if layer.padding_mode != "zeros":
            x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = layer.padding if layer.padding_mode == "zeros" else 0
        given = {"stride": layer.stride, "padding": padding, "dilation": layer.dilation, "groups": layer.groups}
        geometry = geometry_of(layer.kernel_size, given)
        space = x.shape[-len(geometry.kernel) :]
        each = zip(space, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
        counts = [(size + sum(pads) - d * (k - 1) - 1) // step + 1 for size, k, step, pads, d in each]
        return windows(x, geometry, counts, generator, chosen_for)[0]

    def input_dim(self, layer: Any, x: Tensor) -> int:
        return x.ndim - 1 - len(layer.kernel_size)

    def bound(self, layer: Any) -> int:
        return layer.groups if layer.groups > 1 else 0

    def products(self, layer: Any, sizes: tuple[int, int]) -> int:
        groups = self.attributes(layer, sizes)["groups"]
        return sizes[0] * sizes[1] // groups * positions(layer.kernel_size)


class Transposed(Convolution):
    """nn.ConvTranspose1d, 2d, 3d: its matrix is [out * positions, in], its columns the places of the input."""

    turned = True

    def rows_of(self, layer: nn.Module, channels: Tensor) -> Tensor:
        each = len(self.matrix(layer)) // self.sizes(layer)[1]
        return (channels[:, None] * each + torch.arange(each, dtype=torch.int64, device="cpu")).reshape(-1)

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.weight.shape[0], layer.weight.shape[1] * layer.groups

    def axes(self, layer: Any) -> dict[str, Axes]:
        single = layer.groups == 1
        sides = (_READS, _MAKES) if single else (Axis(IN), None)
        return {"weight": (*sides, *[None] * len(layer.kernel_size)), "bias": (_MAKES,)}

    def matrix(self, layer: nn.Module) -> Tensor:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return weight.detach().flatten(1).T

    def set_matrix(self, layer: nn.Module, matrix: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        weight.data.copy_(matrix.T.reshape(weight.shape))

    def columns(self, layer: Any, x: Tensor, generator: torch.Generator, chosen_for: int) -> Tensor:
        return vectors(x.movedim(self.input_dim(layer, x), -1), generator, chosen_for)[0]

    def bias_name(self, layer: nn.Module) -> str:
        return ""  # its rows are the positions of a kernel, which overlap

    def places(self, layer: nn.Module, x: Tensor, y: Tensor) -> int:
        return x.numel() // max(1, x.shape[self.input_dim(layer, x)])


class Embedding(Kind):
    """nn.Embedding and EmbeddingBag: tokens to vectors; its inputs have no channels."""

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Embedding | nn.EmbeddingBag)

    def sizes(self, layer: Any) -> tuple[int, int]:
        return 0, layer.weight.shape[1]

    def axes(self, layer: nn.Module) -> dict[str, Axes]:
        return {"weight": (None, Axis(OUT, reads=True))}

    def attributes(self, layer: nn.Module, sizes: tuple[int, int]) -> dict[str, Any]:
        return {"embedding_dim": sizes[1]}

    def input_dim(self, layer: nn.Module, x: Tensor) -> int:
        return x.ndim - 1


class Norm(Kind):
    """Batch norms, instance norms and PReLU with parameters for each channel, dimension 1."""

    through = True
    names: ClassVar[tuple[str, ...]] = ("weight", "bias", "running_mean", "running_var")

    def fits(self, layer: nn.Module) -> bool:
        norm = isinstance(layer, nn.modules.batchnorm._NormBase) and not isinstance(layer, nn.LazyBatchNorm2d)
        return norm or (isinstance(layer, nn.PReLU) and layer.num_parameters > 1)

    def sizes(self, layer: Any) -> tuple[int, int]:
        count = layer.num_parameters if isinstance(layer, nn.PReLU) else layer.num_features
        return count, count

    def axes(self, layer: nn.Module) -> dict[str, Axes]:
        return dict.fromkeys(self.names, (_MAKES,))

    def attributes(self, layer: nn.Module, sizes: tuple[int, int]) -> dict[str, Any]:
        return {"num_parameters" if isinstance(layer, nn.PReLU) else "num_features": sizes[1]}

    def input_dim(self, layer: nn.Module, x: Tensor) -> int:
        instance = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
        dims = next((d for d in (1, 2, 3) if type(layer).__name__.endswith(f"{d}d")), 0)
        return 0 if instance and x.ndim == dims + 1 else min(1, x.ndim - 1)


class GroupNorm(Norm):
    """nn.GroupNorm: the channels of a group go together."""

    def fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.GroupNorm)

    def sizes(self, layer: Any) -> tuple[int, int]:
        return layer.num_channels, layer.num_channels

    def attributes(self, layer: Any, sizes: tuple[int, int]) -> dict[str, Any]:
        groups = spread(layer.num_groups, layer.num_channels, sizes[1])
        return {"num_channels": sizes[1], "num_groups": groups}

    def input_dim(self, layer: nn.Module, x: Tensor) -> int:
        return 1

    def bound(self, layer: Any) -> int:
        return layer.num_groups
