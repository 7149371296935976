"""Partitions and activation policies by integer programming, for layer graphs with branches."""
