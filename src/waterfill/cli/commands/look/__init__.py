"""Commands that look at files and networks, and write none but a report."""
