"""The steps taken with inputs beside fitting: choose kinds, fit in order, compensate, repair."""
