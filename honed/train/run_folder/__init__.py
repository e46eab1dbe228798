"""What a run leaves on disk: its folder and lock, checkpoints and metrics, and nothing secret."""
