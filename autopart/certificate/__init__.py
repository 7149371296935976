"""The certificate: whether a plan is valid, and how good it is. It uses no solver and no search."""
