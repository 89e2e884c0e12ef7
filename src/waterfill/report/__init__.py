"""What became of every tensor, in tables and text."""
