"""A page about a compressed network: what became of every layer, and what that costs."""
