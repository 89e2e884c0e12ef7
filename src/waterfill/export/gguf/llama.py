"""Llama as llama.cpp knows it: names of tensors, the order of rows of queries and keys, and sizes from the config."""

import re
from typing import Any

import numpy as np

from waterfill.errors import CannotExport

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_KINDS = ("llama", "mistral")
_PLAIN = (None, "default")
_ACTIVATIONS = ("silu", "swish")


class Sizes:
    """What a config says of a network. Raises CannotExport for one that llama.cpp's Llama is not."""

    def __init__(self, config: dict[str, Any]) -> None:
        kind = config.get("model_type")
        if kind not in _KINDS:
            raise CannotExport(f"gguf is written for models like Llama ({', '.join(_KINDS)}), and this is {kind!r}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        scaled = rope.get("rope_type", rope.get("type"))
        if scaled not in _PLAIN:
            raise CannotExport(f"the positions of the model are scaled ({scaled!r}), which is not written here")
        if config.get("hidden_act", "silu") not in _ACTIVATIONS:
            raise CannotExport(f"llama.cpp's Llama has SiLU, and this model {config['hidden_act']!r}")
        self.config = config
        self.hidden = int(config["hidden_size"])
        self.heads = int(config["num_attention_heads"])
        self.key_heads = int(config.get("num_key_value_heads") or self.heads)
        self.head = int(config.get("head_dim") or self.hidden // self.heads)
        self.window = int(config["sliding_window"]) if config.get("sliding_window") else None
        self.rope_base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)

    @property
    def context(self) -> int:
        """Positions, at most those of the window that attention slides: llama.cpp's Llama attends to all, which is the
        same within it."""
        most = int(self.config["max_position_embeddings"])
        return most if self.window is None else min(most, self.window)

    def describe(self, writer: Any) -> None:
        """Write the sizes."""
        config = self.config
        writer.add_vocab_size(config["vocab_size"])
        writer.add_context_length(self.context)
        if self.window is not None:
            writer.add_sliding_window(self.window)
        writer.add_embedding_length(self.hidden)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_heads)
        writer.add_key_length(self.head)
        writer.add_value_length(self.head)
        writer.add_rope_dimension_count(self.head)
        writer.add_rope_freq_base(self.rope_base)
        writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))

    def order(self, name: str, rows: int) -> np.ndarray | None:
        """The order of the rows in llama.cpp, whose rotations take pairs of neighbors; None for as they are."""
        heads = {"q_proj": self.heads, "k_proj": self.key_heads}.get(name.split(".")[-2])
        return None if heads is None else np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def renamed(name: str) -> str:
    """llama.cpp's name of a tensor. Raises CannotExport for one that its Llama does not have."""
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in _IN_LAYER:
        return f"blk.{layer[1]}.{_IN_LAYER[layer[2]]}.weight"
    if name in _NAMES:
        return _NAMES[name]
    raise CannotExport(f"llama.cpp's Llama has no tensor for {name!r}")
