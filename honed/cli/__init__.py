"""A module per verb, or a folder where it has several. Begin with `main.py`."""
