"""One row with what is trained marked."""
