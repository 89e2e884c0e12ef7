"""Many files of one network side by side, and one weight of it after the other."""
