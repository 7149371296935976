"""Changes to a stage's module: recomputation, offload and split backwards."""
