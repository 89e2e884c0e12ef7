"""A matrix of integers as bytes: constant, packed, by histogram, under a density model, along a trellis."""
