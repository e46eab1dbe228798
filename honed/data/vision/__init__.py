"""Rows with images: where images are placed, how they are opened, and how they are encoded."""
