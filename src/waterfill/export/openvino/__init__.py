"""OpenVINO: a network as its intermediate representation, with weights that stay integers in memory."""
