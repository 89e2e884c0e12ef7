"""Large batches: rows of a matrix are restored block by block and multiplied as floats."""
