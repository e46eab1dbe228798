"""Rows in, packed rows and masks out."""
