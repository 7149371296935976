"""Placements: the rank of each stage in one pipeline."""

Placement = tuple[int, ...]
"""The rank of each stage, counted from 0."""


def loop(num_ranks: int, stages_per_rank: int) -> Placement:
    """Round after round in the same direction: stage s on rank s mod k."""
    return tuple(range(num_ranks)) * stages_per_rank


def wave(num_ranks: int, stages_per_rank: int) -> Placement:
    """There and back: rank r has its second stage 2 (k - 1 - r) + 1 after its first.

    With two stages per rank this is the V, whose turn and ends need no send.
    """
    there = tuple(range(num_ranks))
    turns = (there, there[::-1])
    return tuple(rank for turn in range(stages_per_rank) for rank in turns[turn % 2])
