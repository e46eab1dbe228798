"""The page about training data, before training."""
