"""Batch generation: answers to many prompts, written to a file."""
