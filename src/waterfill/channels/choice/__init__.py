"""What it costs that channels go, which go first, and how what stays makes up for them."""
