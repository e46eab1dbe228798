"""One small module per verb."""
