"""MiniMind, a small model to train from scratch: model, weight files, tokenizer. Start with `minimind.py`."""
