"""Rows that show images: where they stand, how they are opened, and what they become."""
