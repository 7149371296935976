"""Partitions of a layer graph that is no chain, with the ways of their layers, by integer programming."""

from autopart.solvers.ilp.program import SEND_SHARE, finish_of, solve

__all__ = ["SEND_SHARE", "finish_of", "solve"]
