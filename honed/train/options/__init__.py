"""What a run can be told: SFTConfig, names of other trainers, and the rules of what goes together."""
