"""Documents into rows, and rows into batches: packing, shared prefixes, collators."""
