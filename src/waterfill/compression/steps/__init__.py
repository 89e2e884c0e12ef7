"""What is done with data beside fitting: choose kinds, fit in order, compensate, repair."""
