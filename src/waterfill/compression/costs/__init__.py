"""What errors cost where inputs say little or nothing: assumed, leaned on, brought to one price."""
