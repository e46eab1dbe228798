"""Documents in rows, and rows in batches: packing, shared prefixes, collators."""
