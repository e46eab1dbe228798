"""What is wrong with data, found before training does. Begin with `lint.py`."""
