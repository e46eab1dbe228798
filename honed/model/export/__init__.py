"""Exports of a trained model for other tools: merged, in 4 bits, as GGUF, for Ollama. Start with `export.py`."""
