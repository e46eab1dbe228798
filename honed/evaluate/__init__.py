"""Evaluation of a trained model, alone or against its base model."""
