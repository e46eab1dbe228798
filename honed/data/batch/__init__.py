"""Combines documents into rows, and rows into batches: packing, shared prefixes, collators."""
