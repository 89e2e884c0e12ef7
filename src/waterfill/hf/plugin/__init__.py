"""What `import waterfill.hf` adds to transformers: reading and writing of compressed folders."""
