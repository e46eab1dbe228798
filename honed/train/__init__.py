"""Training: two engines, the plain loop and SFTTrainer, for one run."""
