"""`honed chat`: the screen, and the state of a conversation."""
