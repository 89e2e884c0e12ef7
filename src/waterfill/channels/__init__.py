"""Structured pruning: channels, neurons and heads that really go away, so that a network is faster in plain PyTorch."""

from waterfill.channels.options import Pruning
from waterfill.channels.prune import prune_channels
from waterfill.channels.result import Pruned
from waterfill.network.channels.gone import fold_norms
from waterfill.network.channels.sizes import shrink

__all__ = ["Pruned", "Pruning", "fold_norms", "prune_channels", "shrink"]
