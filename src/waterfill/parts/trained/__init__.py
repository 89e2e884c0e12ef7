"""What of a part can be trained: its codes one by one, or the numbers beside them."""
