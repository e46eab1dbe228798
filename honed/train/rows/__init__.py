"""What is trained on, and in which batches: data sets, streams, steps by tokens."""
