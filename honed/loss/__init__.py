"""Scores at the LM head, and the objective."""
