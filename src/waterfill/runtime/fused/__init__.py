"""Convolutions that hand 8-bit integers to one another."""
