"""What an error in each weight costs, measured from a few hundred inputs."""
