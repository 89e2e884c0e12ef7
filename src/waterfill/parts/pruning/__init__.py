"""Criteria, patterns and procedures of pruning, and the refit of the kept entries."""
