"""What a run leaves on disk: its folder and lock, checkpoints, and nothing secret."""
