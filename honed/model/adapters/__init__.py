"""Attaches, computes and loads adapters. Start with `adapters.py`."""
