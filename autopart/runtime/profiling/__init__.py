"""Costs for each layer: measured in rounds, or computed from a GPU's datasheet."""
