"""One file per method: a problem and a layout in, partitions out."""
