"""How good a network is, and how far its outputs are from another's."""
