"""A compressed network in the formats of other tools."""
