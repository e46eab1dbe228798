"""Token scores at the LM head, and the objective."""
