"""`honed data`: what it reads, and what it prints."""
