"""Self-contained pages of a run."""
