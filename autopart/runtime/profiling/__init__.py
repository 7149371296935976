"""What each layer costs: measured in rounds, or computed from a GPU's data sheet."""
