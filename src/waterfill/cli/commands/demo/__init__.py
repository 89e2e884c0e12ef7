"""`waterfill demo`: the command, and the network of handwritten digits that it trains."""
