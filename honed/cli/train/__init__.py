"""`honed train`, what it would do, and all its keys."""
