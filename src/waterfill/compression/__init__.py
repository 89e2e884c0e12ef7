"""A network to a budget: compress, with inputs and without, in memory and from file to file."""
