"""The quality of a network, and the distance of its outputs from another's."""
