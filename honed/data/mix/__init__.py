"""Selects rows: weighted sources, held-out shares, near-duplicates."""
