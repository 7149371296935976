"""A plan's own orders: one action order per rank for a given partition."""
