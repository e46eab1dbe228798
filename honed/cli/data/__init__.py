"""`honed data`: its input and its output."""
