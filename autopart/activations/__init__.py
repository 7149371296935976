"""Activation policies: keep, recompute, recompute selectively or offload, for each layer."""
