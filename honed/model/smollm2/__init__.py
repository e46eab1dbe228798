"""The default model, from a GGUF file inside a wheel. Begin with `smollm2.py`."""
