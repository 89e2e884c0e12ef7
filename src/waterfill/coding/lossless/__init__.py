"""Floating-point words, bit for bit."""
