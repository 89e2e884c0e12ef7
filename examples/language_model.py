"""Compress the folder of a transformers language model with a text; measure it, run it packed, and let it write.

python examples/language_model.py FOLDER TEXT.txt [BITS [WINDOWSxTOKENS]]

Needs the extra: pip install "waterfill[hf]". The whole model is in memory, so begin with a small one. What it measures
on is the text that it was calibrated with: give `evaluate` another one to judge by.
"""

import sys
from pathlib import Path

import torch
import transformers

import waterfill
import waterfill.hf


def main(folder: str, text: str, bits: str = "4", tokens: str = "32x512") -> None:
    windows = waterfill.hf.Windows.parse(tokens)
    target = Path(folder).with_name(f"{Path(folder).name}-{bits}bit")
    made = waterfill.hf.compress_folder(folder, target, bits=float(bits), text=text, windows=windows)
    print(f"{target}: {made.size} bytes of weights, {made.ratio:.1f} times smaller")

    original = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dense = waterfill.hf.load(target, dtype=torch.float32)
    packed = waterfill.hf.load(target, packed=True, dtype=torch.float32)
    for name, model in {"dense": dense, "packed": packed}.items():
        scores = waterfill.hf.evaluate(model, text, target, windows, reference=original)
        print(f"{name}: perplexity {scores.perplexity:.3f}, divergence {scores.evaluation.divergence:.5f} nats a token")
    memory = sum(row["bytes"] for row in waterfill.runtime.table(packed))
    print(f"packed layers take {memory} bytes of memory")

    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    start = tokenizer(Path(text).read_text("utf-8")[:40], return_tensors="pt")["input_ids"]
    print(tokenizer.decode(packed.generate(start, max_new_tokens=20, do_sample=False)[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
