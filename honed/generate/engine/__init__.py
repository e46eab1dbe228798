"""honed's own decoding."""
