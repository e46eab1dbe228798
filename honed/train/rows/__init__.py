"""Training rows and their batches: datasets, streams, steps by number of tokens."""
