"""What is fastest on this machine, by measurement."""
