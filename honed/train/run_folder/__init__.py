"""A run's files: folder and lock, checkpoints and metrics, without secrets."""
