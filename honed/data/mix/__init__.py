"""Which rows are taken: weighted sources, a share held out, rows alike."""
