"""Which entries to keep, and what the kept ones become."""
