"""How a model computes during training: seams, compilation, checkpointing, offloading, noise."""
