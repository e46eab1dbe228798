"""Rows from files and data sets, and the canonical form of each."""
