"""`honed new`: creates tokenizers and models from scratch, and recipes from other trainers' YAML."""
