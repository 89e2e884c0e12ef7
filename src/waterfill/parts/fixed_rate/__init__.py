"""Codes of a given number of bits, with scales for groups of columns: what other tools run."""
