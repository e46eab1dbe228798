"""`honed prove`: that honed's shortcuts change nothing, checked on the user's own model and rows."""
