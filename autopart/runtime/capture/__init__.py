"""A model as layers: captured as one graph of operations, grouped, and cut into stages."""
