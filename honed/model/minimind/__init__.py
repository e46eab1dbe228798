"""A small model to train from nothing: the model, its weight files, its tokenizer. Begin with `minimind.py`."""
