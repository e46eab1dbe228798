"""One row with the trained tokens marked."""
