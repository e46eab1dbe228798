"""`honed new`: what is made from nothing, and recipes made from other trainers' YAML."""
