"""CompressedModel: names to parts, to and from a file."""
