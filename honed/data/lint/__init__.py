"""Finds faults in data before training. Start reading at `lint.py`."""
