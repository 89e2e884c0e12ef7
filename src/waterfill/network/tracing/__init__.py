"""Which products with which weights a network computes."""
