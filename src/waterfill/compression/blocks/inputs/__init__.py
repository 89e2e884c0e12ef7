"""What the weights of a block get from both networks, and the moments of it that their fits need."""
