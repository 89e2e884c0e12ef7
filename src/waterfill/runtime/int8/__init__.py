"""Layers whose inputs are rounded to 8 bits by ranges that calibration found."""
