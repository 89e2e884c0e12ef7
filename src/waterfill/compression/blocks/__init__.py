"""Compression of a network block by block: time linear in depth, and the memory of one block and its matrices."""
