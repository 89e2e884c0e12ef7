"""Codes of a quantized part: steps, candidates, error feedback, trellis."""
