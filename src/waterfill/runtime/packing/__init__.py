"""What becomes of the layers of a network when it is packed."""
