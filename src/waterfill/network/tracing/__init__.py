"""Traces the products with weights that a network computes."""
