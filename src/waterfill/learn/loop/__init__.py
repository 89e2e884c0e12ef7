"""The ready-made training loop: its batches, its snapshots, its phases."""
