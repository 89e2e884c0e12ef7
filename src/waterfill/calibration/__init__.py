"""Measures the importance of each weight, the cost of errors in it, on a few hundred inputs."""
