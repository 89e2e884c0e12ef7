"""Networks as a chain of blocks: which these are, how each is called, and the hidden states between them."""
