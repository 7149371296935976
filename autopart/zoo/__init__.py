"""Built-in example models, one file per family."""
