"""The page of data before it is trained on."""
