"""The smallest largest load of accelerators and CPUs, stages contiguous or not; `splits` is the way in."""
