"""`honed plan`: ways to train, on one GPU and on several."""
