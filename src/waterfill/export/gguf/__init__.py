"""GGUF: language models like Llama for llama.cpp, with their tokenizer."""
