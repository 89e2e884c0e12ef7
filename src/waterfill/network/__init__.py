"""A PyTorch network as it is: its tensors as matrices, its batches, its forward pass."""
