"""A recipe from end to end. Begin with `run.py`."""
