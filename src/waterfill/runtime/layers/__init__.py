"""Layers that run from compressed weights, in the place of PyTorch's own."""
