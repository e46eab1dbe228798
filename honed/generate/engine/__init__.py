"""honed's own decoding engine."""
