"""`honed generate`: one answer, or a file of answers."""
