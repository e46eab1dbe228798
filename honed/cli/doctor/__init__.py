"""`honed doctor`: facts, and rules over them."""
