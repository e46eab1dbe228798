"""Rows from files and datasets, and their canonical forms."""
