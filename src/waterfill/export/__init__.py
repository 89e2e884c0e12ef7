"""A compressed network in the formats of other tools, one folder or file each.

    safetensors           dense, in the folder of a transformers model: whatever reads these
    onnx                  ONNX Runtime: integer weights that stay small, and everything else
    openvino              OpenVINO: integer weights that stay small
    compressed-tensors    vLLM, and transformers
    gguf                  llama.cpp: language models like Llama

Integers leave as they are: nothing is rounded again unless it is asked for. `front.export` is the way in.
"""

from waterfill.export.beside import beside
from waterfill.export.front import FORMATS, export
from waterfill.export.how import How, Network
from waterfill.export.result import Exported, Row

__all__ = ["FORMATS", "Exported", "How", "Network", "Row", "beside", "export"]
