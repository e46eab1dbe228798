"""Options of a run: SFTConfig, the names that other trainers use, and the rules about combinations."""
