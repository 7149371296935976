"""Tensor parallelism: the local graph for one of t ranks, made from a captured graph."""
