"""Runs a recipe from end to end. Start with `run.py`."""
