"""Rows from files and data sets, and their canonical forms."""
