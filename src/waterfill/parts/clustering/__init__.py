"""Codebooks: exact k-means and closed forms."""
