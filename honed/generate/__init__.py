"""Generation from prompts made as in training."""
