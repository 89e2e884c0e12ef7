"""Costs of errors where there are few inputs or none: assumed, mixed with measured ones, scaled to one unit."""
