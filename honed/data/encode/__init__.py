"""Views as ids and loss weights."""
