"""A model as layers: captured as one operation graph, grouped, and cut into stages."""
