"""Loads models and tokenizers by name, with optional quantisation and chat tokens. Start with `load.py`."""
