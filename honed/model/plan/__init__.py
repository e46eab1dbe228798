"""Predicts the memory and time of a run before anything is loaded. Start with `plan.py`."""
