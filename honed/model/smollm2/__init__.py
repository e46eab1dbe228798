"""The default model, from a GGUF file inside a wheel. Start with `smollm2.py`."""
