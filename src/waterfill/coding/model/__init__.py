"""The density model of a matrix of codes: what it is, and how it is fitted."""
