"""dnn-partitioning: the smallest largest charge on accelerators and CPUs, its authors' "max-load"."""
