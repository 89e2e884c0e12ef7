"""The channels of layers: which entries of which tensors belong to one, and layers with fewer of them."""
