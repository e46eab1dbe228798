"""`engine: plain`: supervised fine-tuning as one loop in plain PyTorch. Start with `loop.py`."""
