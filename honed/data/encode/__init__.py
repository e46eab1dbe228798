"""Encodes views as token ids and loss weights."""
