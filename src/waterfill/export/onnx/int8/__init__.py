"""Layers whose inputs are 8-bit integers too, in the operators that ONNX Runtime runs so."""
