"""Measured profiles at other settings: microbatch, sequence, dtype, GPU, number of blocks."""
