//! Reads safetensors, GGUF, config.json and tokenizers by memory map, and writes converted checkpoints.
