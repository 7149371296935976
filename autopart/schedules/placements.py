"""Where the stages of one pipeline lie: the rank of each stage, ranks counted from 0."""

Placement = tuple[int, ...]


def loop(num_ranks: int, stages_per_rank: int) -> Placement:
    """Round after round in the same direction: stage s on rank s mod k."""
    return tuple(range(num_ranks)) * stages_per_rank


def wave(num_ranks: int, stages_per_rank: int) -> Placement:
    """There and back: the second stage of a rank comes 2 (k - 1 - r) + 1 after its first. With two
    stages a rank this is the V, whose turn and ends need no send."""
    there = tuple(range(num_ranks))
    turns = (there, there[::-1])
    return tuple(rank for turn in range(stages_per_rank) for rank in turns[turn % 2])
