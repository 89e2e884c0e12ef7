"""A network run on its inputs: batches, calls, and the state that a run leaves as it was."""
