"""Meets a file size exactly: a budget in bytes."""
