"""Optimizers: the choice for a run, and honed's own."""
