"""Training, with one of two engines: the plain loop or SFTTrainer."""
