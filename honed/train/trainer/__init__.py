"""`engine: trainer`: SFTTrainer, a layer on transformers' Trainer for each matter. Begin with `trainer.py`."""
