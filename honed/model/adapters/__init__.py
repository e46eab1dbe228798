"""Adapters: attached, computed as one function, loaded again. Begin with `adapters.py`."""
