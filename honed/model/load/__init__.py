"""A name becomes a model and a tokenizer, quantised where asked for, with tokens for chats. Begin with `load.py`."""
