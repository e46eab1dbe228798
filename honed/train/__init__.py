"""Training: configuration, trainer, run."""
