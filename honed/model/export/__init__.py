"""A trained run as files that others run: merged, in 4 bits, as GGUF, for Ollama. Begin with `export.py`."""
