"""How a model computes while it is trained: seams, what is compiled, recomputed, moved away or made noisy."""
