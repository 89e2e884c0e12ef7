"""ONNX: the graph of the user's network, its weights as integers that the operators of ONNX Runtime multiply from."""
