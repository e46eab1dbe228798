"""`engine: trainer`: SFTTrainer, layers on transformers' Trainer with one concern each. Start with `trainer.py`."""
