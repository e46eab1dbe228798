"""All of it in one pass, before training or while training. Begin with `prepare.py`."""
