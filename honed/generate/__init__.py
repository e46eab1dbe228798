"""Generation, with prompts rendered as in training."""
