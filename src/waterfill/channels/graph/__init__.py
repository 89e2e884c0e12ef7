"""Which channels of a network go together, and which of them can go."""
