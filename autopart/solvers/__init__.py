"""Partitions for a problem and a layout, one file for each method."""
