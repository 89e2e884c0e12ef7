"""One price for all weights."""
