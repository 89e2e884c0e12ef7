"""What it costs that a layer no longer sees some of its input channels, once the others have made up for it.

Block OBS: D = 1/2 sum_o g_o w_oS ([A^-1]_SS)^-1 w_oS^T is the least rise of the layer's distortion when its columns S
are set to zero and all others refitted (Hassibi and Stork 1993; in blocks, arXiv 2203.07259). A is the covariance of
the columns, so that what is constant in a channel costs nothing: it goes into the bias.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.channels.choice.moments import Moments, damped_factor, input_moments
from waterfill.channels.graph.groups import Family
from waterfill.channels.graph.network import IN, OUT, Layer, Network, Node
from waterfill.importance import Importance
from waterfill.network.channels.kind import entries
from waterfill.network.channels.layers import LinearKind
from waterfill.network.channels.recurrent import Recurrent
from waterfill.network.tensors import owners_of

WIDEST = 6144
"""Columns of a covariance that is inverted; of more, only the variances count, and nothing makes up for a column."""
_DAMPING = 1e-3
_TINY = 1e-30
Key = tuple[str, str]
"""A layer by name, and one of its weights that reads channels."""


@dataclass
class Reader:
    """A weight that reads channels, as more and more of them go.

    weight: [rows, cols], the others refitted. inverse: of the damped covariance of the columns that are left,
    [cols, cols], or of the variances, [cols]. rows: output weights g, [rows]. side: whose channels it reads. each: by
    channel, its columns [channels, count].
    """

    weight: Tensor
    inverse: Tensor
    rows: Tensor
    side: str
    each: Tensor

    def copy(self) -> "Reader":
        return Reader(self.weight.clone(), self.inverse.clone(), self.rows, self.side, self.each)

    def costs(self, channels: Tensor) -> Tensor:
        """The cost of each of several sets of channels [sets, count], [sets]."""
        columns = self.each[channels].flatten(1)
        wide = self.weight[:, columns].movedim(1, 0)  # [sets, rows, count]
        if self.inverse.ndim == 1:
            solved = wide / self.inverse[columns].clamp_min(_TINY)[:, None, :]
        else:
            inner = self.inverse[columns[:, :, None], columns[:, None, :]]
            inner = inner + 1e-9 * inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_TINY)[:, None, None] * torch.eye(
                columns.shape[1], dtype=inner.dtype, device=inner.device
            )
            solved = torch.linalg.solve(inner, wide.mT).mT
        return 0.5 * ((wide * solved).sum(2) * self.rows).sum(1)

    def remove(self, channels: Tensor) -> None:
        """Set the columns of some channels to zero, and let all others make up for them."""
        columns = self.each[channels].reshape(-1)
        if self.inverse.ndim == 2:
            strip = self.inverse[columns]
            solved = torch.linalg.lstsq(strip[:, columns], strip).solution  # (H_SS)^-1 H_S:
            self.weight -= self.weight[:, columns] @ solved
            self.inverse -= strip.T @ solved
            self.inverse[columns] = 0
            self.inverse[:, columns] = 0
        self.weight[:, columns] = 0

    def drop_rows(self, rows: Tensor) -> None:
        """Let some outputs no longer count."""
        self.weight[rows] = 0


def readers_of(
    network: Network,
    families: list[Family],
    measured: tuple[Mapping[str, Importance], Mapping[str, Tensor]],
    origin: Mapping[Node, Tensor],
    others: Iterable[str] = (),
) -> dict[Key, Reader]:
    """A reader for every weight that reads channels of some family, and for those of other layers.

    measured: the importance of the weights of the original, by name, for those whose inputs are not seen; and by
    layer, its output weights, scaled as `output_weights` does. origin: by node, the channels of the original that are
    left, where some went.
    """
    importance, rows = measured
    reading = {name: network.layers[name] for family in families for name, side in family.nodes if side == IN}
    reading |= {name: network.layers[name] for name in others}
    plain = {n: la for n, la in reading.items() if isinstance(la.kind, LinearKind) and not la.kind.bound(la.module)}
    readers: dict[Key, Reader] = {}
    for name, moments in input_moments(network, list(plain.values()), WIDEST).items():
        readers[name, "weight"] = _reader(plain[name], moments, rows.get(name))
    for name in dict.fromkeys(name for family in families for name, side in family.nodes if side == OUT):
        layer = network.layers[name]
        if isinstance(layer.kind, Recurrent):
            for key in layer.kind.inner(layer.module):
                known = importance.get(f"{name}.{key}" if name else key)
                readers[name, key] = _inner_reader(layer, key, known, origin.get((name, OUT)))
    return readers


def _reader(layer: Layer, moments: Moments, rows: Tensor | None) -> Reader:
    assert isinstance(layer.kind, LinearKind)
    weight = layer.kind.matrix(layer.module).cpu().double()
    size = layer.kind.sizes(layer.module)[0]
    each = torch.stack([layer.kind.columns_of(layer.module, channel) for channel in _numbers(size)])
    g = torch.ones(len(weight), dtype=torch.float64, device="cpu") if rows is None else rows / moments.energy
    return Reader(weight.clone(), _inverse(moments.covariance), g, IN, each)


def _inner_reader(layer: Layer, key: str, known: Importance | None, left: Tensor | None) -> Reader:
    """A weight of a recurrent layer that reads its hidden units, with the importance measured by calibration.

    left: which units of the original are left, where some went.
    """
    weight = getattr(layer.module, key).detach().cpu().double()
    size = layer.kind.sizes(layer.module)[1]
    made, read = layer.kind.axes(layer.module)[key]
    assert made is not None and read is not None
    each = torch.stack([entries(read, channel, size) for channel in _numbers(size)])
    if known is None or known.gram is None:  # nothing is known of its inputs: all count the same
        rows, columns = (torch.ones(count, dtype=torch.float64, device="cpu") for count in weight.shape)
        return Reader(weight.clone(), columns, rows, OUT, each)
    gram, rows = known.gram.double(), known.rows.double()
    if left is not None:
        whole = len(gram) // read.blocks
        columns = entries(read, left, whole)
        gram, rows = gram[columns][:, columns], rows[entries(made, left, whole)]
    return Reader(weight.clone(), _inverse(gram), rows, OUT, each)


def _numbers(size: int) -> Tensor:
    """0 to size - 1, each in a tensor of its own."""
    return torch.arange(size, dtype=torch.int64, device="cpu")[:, None]


def _inverse(covariance: Tensor) -> Tensor:
    """The inverse of a damped covariance, or of variances."""
    if covariance.ndim == 1:
        return 1 / (covariance + _DAMPING * covariance.mean()).clamp_min(_TINY)
    return torch.cholesky_inverse(damped_factor(covariance, _DAMPING))


def output_weights(network: Network, importance: Mapping[str, Importance]) -> dict[str, Tensor]:
    """By layer, g_o of its outputs times the energy of its inputs, [rows] (float64), from measured importance."""
    owners = owners_of(network.model)
    found = {}
    for name, layer in network.layers.items():
        if not isinstance(layer.kind, LinearKind):
            continue
        keys = layer.kind.names(layer.module) if isinstance(layer.kind, Recurrent) else ["weight"]
        parts = [importance.get(owners.get(f"{name}.{key}" if name else key, "")) for key in keys]
        shape = layer.kind.matrix(layer.module).shape
        if all(part is not None for part in parts):
            each = (shape[0] // len(parts), shape[1])
            found[name] = torch.cat([_weights(part, each, layer.kind.turned) for part in parts if part is not None])
    return found


def _weights(known: Importance, shape: tuple[int, int], turned: bool) -> Tensor:
    """Output weights times energy of the inputs, of a matrix of this shape."""
    if turned:
        columns, rows = known.column_weights(shape[0]).double(), known.row_weights(shape[1]).double()
        return columns * rows.sum()
    return known.row_weights(shape[0]).double() * float(known.column_weights(shape[1]).double().sum())
