"""Compute that depends on torch only."""
