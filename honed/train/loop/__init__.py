"""`engine: plain`: supervised fine-tuning as one loop in plain PyTorch. Begin with `loop.py`."""
