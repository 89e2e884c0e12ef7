"""Tiny networks of transformers with random weights: six families, and the folder of a language model."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn

_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VOCABULARY = 128
FAMILIES = ("Llama", "GPT2", "BERT", "ViT", "Whisper", "Mixtral")


def build(family: str) -> nn.Module:
    """A network of a family, in evaluation mode; the same each time."""
    torch.manual_seed(0)
    model: nn.Module = getattr(_Families, family)().eval()
    return model


def inputs_of(family: str) -> dict[str, Tensor]:
    """Arguments of a network of a family."""
    random = torch.Generator().manual_seed(1)
    if family == "ViT":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=random)}
    if family == "Whisper":
        sound = torch.randn(1, 8, 40, generator=random)
        return {"input_features": sound, "decoder_input_ids": torch.arange(9)[None]}
    return {"input_ids": torch.randint(0, VOCABULARY, (2, 16), generator=random)}


def language_model(folder: Path, **saving: Any) -> nn.Module:
    """A Llama with a tokenizer of the words w0, w1, ... in a folder, with tied embeddings."""
    model = build("Llama")
    model.save_pretrained(folder, **saving)
    last = VOCABULARY - 1
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(last)} | {"<end>": last}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    special = {"unk_token": "w0", "eos_token": "<end>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return model


def write_text(path: Path, tokens: int) -> Path:
    """A text of so many words that the tokenizer knows."""
    random = torch.Generator().manual_seed(2)
    numbers = torch.randint(0, VOCABULARY - 1, (tokens,), generator=random).tolist()
    path.write_text(" ".join(f"w{number}" for number in numbers))
    return path


class _Families:
    @staticmethod
    def Llama() -> nn.Module:
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCABULARY,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                max_position_embeddings=64,
                **_SIZES,
            )
        )

    @staticmethod
    def GPT2() -> nn.Module:
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=VOCABULARY, **sizes))

    @staticmethod
    def BERT() -> nn.Module:
        return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=VOCABULARY, **_SIZES))

    @staticmethod
    def ViT() -> nn.Module:
        config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=7, **_SIZES)
        return transformers.ViTForImageClassification(config)

    @staticmethod
    def Whisper() -> nn.Module:
        each = {"layers": 1, "attention_heads": 4, "ffn_dim": 96}
        both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in each.items()}
        lengths = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config = transformers.WhisperConfig(vocab_size=VOCABULARY, d_model=64, **both, **lengths, **tokens)
        return transformers.WhisperForConditionalGeneration(config)

    @staticmethod
    def Mixtral() -> nn.Module:
        config = transformers.MixtralConfig(
            vocab_size=VOCABULARY, num_key_value_heads=2, num_local_experts=4, tie_word_embeddings=False, **_SIZES
        )
        return transformers.MixtralForCausalLM(config)
