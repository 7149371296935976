"""Placements: the rank of each stage in one pipeline, and in pairs of pipelines that share ranks."""

from collections.abc import Sequence

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


def mirrored(ranks: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The ranks of each stage where pairs of pipelines run over the same ranks in both directions.

    `ranks` has for each pair its k ranks. Stage s is on rank s of the pair for even microbatches, and
    on rank k - 1 - s for odd ones.
    """
    return tuple(
        tuple(own[place] for own in ranks for place in (stage, len(own) - 1 - stage))
        for stage in range(len(ranks[0]))
    )
