"""`honed train`, its dry run, and all its keys."""
