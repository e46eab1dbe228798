"""What takes a step: which optimizer a run has, and honed's own."""
