"""Figures that the cost model needs about a cluster, measured between real ranks."""
