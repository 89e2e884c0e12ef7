"""Rounds the inputs of layers to 8 bits where that is faster, and where the network says nearly the same."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from waterfill.arithmetic import own_arithmetic
from waterfill.errors import BadInput
from waterfill.network.running.batches import check_batches, each_tensor, first_of, samples_in, split
from waterfill.network.running.forward import Forward, as_deployed, result_of
from waterfill.network.running.state import same_draws, unchanged
from waterfill.runtime.int8.loss import LOSS, Judge, Loss
from waterfill.runtime.int8.observe import Seen, observe, watched
from waterfill.runtime.int8.sites import Site, candidates, sites_of
from waterfill.runtime.int8.term import Int8Term
from waterfill.runtime.layers.convolution import PackedConvolution
from waterfill.runtime.leaves import Term
from waterfill.runtime.measured.timing import WHOLE_NETWORK, shortest
from waterfill.runtime.packing.settle import settle
from waterfill.runtime.packing.table import WHY

_HELD_OUT = 0.25
"""Share of the inputs that judges, and on which nothing is fitted."""
_NEVER = 1 << 62


def quantize_activations(  # noqa: PLR0913 - how much may be lost, what is timed, and two ways in which networks differ
    model: nn.Module,
    batches: Iterable[Any],
    *,
    limit: float = 0.01,
    batch: int | None = None,
    forward: Forward | None = None,
    logits: bool | None = None,
) -> nn.Module:
    """Let linear layers and convolutions of a packed network multiply 8-bit weights with 8-bit inputs.

    A linear layer rounds each input vector by its own range. A convolution has one range for all, found on the inputs
    given here, together with factors by which channels are multiplied before; what lies beyond is clipped, as in other
    tools (`clipped` counts it). Codes of the file that fit in 8 bits stay as they are; other weights are rounded once
    more, and that is part of the loss.

    A quarter of the inputs is held out. On these, outputs are compared with those of the network before; while they are
    further away than the limit, the layers that lose most alone go back to what they were. `table` says what became of
    each layer and why, and in its last row the loss of the whole.

    Args:
        model: that `pack` gave, or any other in evaluation mode, on a CPU; changed in place.
        batches: inputs as for `compress`, without labels; some hundreds are enough.
        limit: of the loss: the divergence, nats, mean of the output rows, as `evaluate` measures it; for outputs that
            are no logits the norm of the error relative to that of the outputs.
        batch: None to round the inputs of all layers; or inputs at a time, for which each layer is timed once in both
            forms, and in the end the whole network.
        forward: as for `compress`.
        logits: whether outputs are logits, classes last; None: wherever they can be ([batch, classes] or [batch, time,
            classes]).

    Returns:
        The module; in the place of one that is a single dense layer, the packed layer.

    Raises:
        BadInput: batches that the model cannot take, fewer than two inputs, inputs of a layer that are NaN or infinite,
            a limit that is no positive number, another `batch`, a network that rounds its inputs by ranges already.

    Example:
        >>> net = waterfill.pack("net.wf", Net())
        >>> net = runtime.quantize_activations(net, inputs.split(32), batch=32)
        >>> print(runtime.table(net)[-1])
    """
    _check(model, batches, limit, batch)
    fitting, held = split(batches, _HELD_OUT)
    with own_arithmetic(), torch.no_grad():
        return _Rounding(model, (fitting, held), limit, batch, forward, logits).run()


def clipped(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> dict[str, float]:
    """The share of the inputs of each convolution that lies beyond its range and is clipped, 0 to 1, by name.

    About none is as it should be; where much is, the calibration inputs were of another sort than these. Raises
    BadInput for batches that the model cannot take.
    """
    check_batches(model, batches)
    layers = {
        name: (layer, _Count(layer.term, -1 - len(layer.kernel_size)))
        for name, layer in model.named_modules()
        if isinstance(layer, PackedConvolution) and isinstance(layer.term, Int8Term)
    }

    with as_deployed(model), watched(layers, _Count.add):
        for batch in batches:
            with unchanged(model), same_draws(batch):
                result_of(model, each_tensor(batch, torch.Tensor.clone), forward)
    return {name: own.beyond / max(1, own.inputs) for name, (_, own) in layers.items()}


@dataclass
class _Count:
    """Inputs of a convolution, and how many of them are beyond its range."""

    term: Int8Term
    channel: int
    beyond: int = 0
    inputs: int = 0

    def add(self, x: torch.Tensor) -> None:
        self.beyond += self.term.beyond(x, self.channel)
        self.inputs += x.numel()


@dataclass
class _Rounding:
    """One network on its way. batches: to fit on, and held out. The others are as for `quantize_activations`."""

    model: nn.Module
    batches: tuple[Sequence[Any], Sequence[Any]]
    limit: float
    batch: int | None
    forward: Forward | None
    logits: bool | None
    why: dict[str, str] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)

    def run(self) -> nn.Module:
        try:
            return self._run()
        except BaseException:  # of the caller's network too: it stays as it was
            self._put(self.sites, False)
            raise

    def _run(self) -> nn.Module:
        layers = {name: (layer, channel) for name, layer, channel in candidates(self.model)}
        judge = Judge(self.model, self.batches[1], self.forward, self.logits)
        seen = observe(self.model, layers, self.batches[0], self.forward)
        for name, site in sites_of({name: layer for name, (layer, _) in layers.items()}, seen).items():
            if isinstance(site, Site):
                self.sites.append(site)
            else:
                self.why[name] = site
        sites = self._faster(self.sites, seen)
        sites, loss = self._within(sites, judge)
        if self.batch is not None and sites and not self._quicker(sites):
            loss = 0.0
            sites = []
        self._note(sites, layers)
        setattr(self.model, LOSS, Loss(loss, judge.logits, judge.inputs, (len(sites), len(layers)), self.limit))
        return self.model.eval().requires_grad_(False)

    def _put(self, sites: Sequence[Site], on: bool) -> None:
        for site in sites:
            self.model = site.switch(self.model, on)

    def _faster(self, sites: list[Site], seen: dict[str, Seen]) -> list[Site]:
        """Those that are, all of them where nothing is timed; layers that are alike are timed once."""
        if self.batch is None:
            return sites
        known: dict[Any, tuple[bool, str]] = {}
        for site in sites:
            own = seen[site.name]
            words = site.before.words.partition(",")[0] if site.before is not None else ""
            geometry = [str(getattr(site.layer, name, "")) for name in ("kernel_size", "stride", "groups", "dilation")]
            key = (type(site.made), own.shape, own.strides, site.after.rows, words, *geometry)
            if key not in known:
                known[key] = self._timed(site, own)
            self.why[site.name] = known[key][1]
        return [site for site in sites if self.why[site.name].startswith(_FASTER)]

    def _timed(self, site: Site, own: Seen) -> tuple[bool, str]:
        """Whether a layer is faster with 8-bit inputs, and the times."""
        one = torch.empty_strided(own.shape[1:], own.strides[1:], dtype=own.dtype, device="cpu")
        x = torch.stack([one.zero_()] * (self.batch or 1)) if len(own.shape) > 1 else one.zero_()
        if len(own.shape) == 4 and own.strides[1] == 1:
            x = x.contiguous(memory_format=torch.channels_last)
        times = _seconds({"off": lambda: site.run(x, False), "on": lambda: site.run(x, True)})
        site.rest()
        faster = times["on"] < times["off"]
        start = _FASTER if faster else "slower with 8-bit inputs"
        return faster, f"{start}: {1e6 * times['on']:.0f} µs, {1e6 * times['off']:.0f} µs before"

    def _within(self, sites: list[Site], judge: Judge) -> tuple[list[Site], float]:
        """As many as stay within the limit, and their loss; those that lose most alone go back first."""
        self._put(sites, True)
        with _always(sites):
            loss = judge.loss(self.model)
        if loss <= self.limit or not sites:
            return sites, loss
        self._put(sites, False)
        alone = {site.name: self._loss_of([site], judge) for site in sites}
        order = sorted(sites, key=lambda site: alone[site.name])  # the best first
        low, high, losses = 0, len(order), {0: 0.0}  # how many stay: so many may, so many may not
        while high - low > 1:
            middle = (low + high) // 2
            losses[middle] = self._loss_of(order[:middle], judge)
            low, high = (middle, high) if losses[middle] <= self.limit else (low, middle)
        for site in order[low:]:
            self.why[site.name] = f"8-bit inputs lose too much: {alone[site.name]:.2g} by this layer alone"
        self._put(order[:low], True)
        return order[:low], losses[low]

    def _loss_of(self, sites: Sequence[Site], judge: Judge) -> float:
        """Of these alone; none rounds its inputs before or after."""
        self._put(sites, True)
        with _always(sites):
            loss = judge.loss(self.model)
        self._put(sites, False)
        return loss

    def _quicker(self, sites: list[Site]) -> bool:
        """Whether the whole network is faster; if not, all go back."""
        given = first_of(self.batches[0][0], min(self.batch or 1, max(1, samples_in(self.batches[0][0]))))

        def run(on: bool) -> None:
            self._put(sites, on)
            result_of(self.model, each_tensor(given, torch.Tensor.clone), self.forward)

        with as_deployed(self.model), unchanged(self.model), same_draws(given):
            times = _seconds({"off": lambda: run(False), "on": lambda: run(True)})
        faster = times["on"] < times["off"]
        self._put(sites, faster)
        if not faster:
            both = f"{1e3 * times['on']:.3g} ms, {1e3 * times['off']:.3g} ms before"
            self.why |= {site.name: f"the whole network is no faster with 8-bit inputs: {both}" for site in sites}
        return faster

    def _note(self, sites: Sequence[Site], layers: dict[str, tuple[nn.Module, int]]) -> None:
        """Let layers say why they are what they are, and the modules around them leave them so."""
        made = {site.name: site.made for site in sites}
        for name, (layer, _) in layers.items():
            setattr(made.get(name, layer), WHY, self.why.get(name, ""))
        large = next((term.large for term in self.model.modules() if isinstance(term, Term) and term.large), 0)
        settle(self.model, large)


@contextmanager
def _always(sites: Sequence[Site]) -> Iterator[None]:
    """A block in which layers round inputs however many there are: those held out are multiplied at once, as floats
    where that is faster, but a loss is that of inputs one by one too."""
    terms = [term for site in sites for term in site.after.modules() if isinstance(term, Term)]
    before = [term.large for term in terms]
    try:
        for term in terms:
            term.large = _NEVER
        yield
    finally:
        for term, large in zip(terms, before, strict=True):
            term.large = large


_FASTER = "faster with 8-bit inputs"


def _check(model: Any, batches: Any, limit: Any, batch: Any) -> None:
    """Raises BadInput for arguments that are none."""
    check_batches(model, batches)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < float("inf"):
        raise BadInput(f"limit={limit!r} is no loss that may be; give nats a row, such as 0.01")
    if hasattr(model, LOSS):
        raise BadInput("the network rounds the inputs of its layers already; pack the file anew to do it another way")
    if batch is not None and not (type(batch) is int and batch >= 1):
        raise BadInput(f"batch={batch!r} is no number of inputs; give 1 or more, or None")


@torch.inference_mode()
def _seconds(actions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Of the shortest run of each on the processor, where these kernels are."""
    return shortest(actions, torch.device("cpu"), WHOLE_NETWORK)
