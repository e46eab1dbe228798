"""Encodes views as ids and loss weights."""
