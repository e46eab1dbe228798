"""Reads, renders and packs rows in one pass, before or during training. Start reading at `prepare.py`."""
