"""Compressed networks at home in Hugging Face's transformers: a folder in, a folder out, and the model back from it.

A compressed folder holds what the original one held (config, tokenizer, card), with `model.wf` in the place of the
weights. Where transformers is installed, importing this package lets its `from_pretrained` read such folders and its
`save_pretrained` write them. It is the extra `waterfill[hf]`; only `compress_folder` without a text can do without.
"""

import importlib.util

from waterfill.hf.compress import compress_folder
from waterfill.hf.folder import is_compressed
from waterfill.hf.load import load, save
from waterfill.hf.scores import TextScores, evaluate, lm_eval_model
from waterfill.hf.text import Windows

__all__ = ["TextScores", "Windows", "compress_folder", "evaluate", "is_compressed", "lm_eval_model", "load", "save"]

if importlib.util.find_spec("transformers") is not None:
    from waterfill.hf.plugin.pretrained import register

    register()
