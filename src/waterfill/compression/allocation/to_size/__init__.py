"""A size met to the byte."""
