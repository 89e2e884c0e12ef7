"""Engines: where the work on the weights of a checkpoint is done, on this machine or on many."""
