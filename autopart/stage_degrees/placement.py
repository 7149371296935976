"""The GPUs of stages whose tensor groups have different sizes.

There are R replicas, and stage s has degree t_s. Each of its R tensor groups takes t_s GPUs of one
node, from a multiple of t_s on. Two placements are looked at, in both of which larger groups come
first:

    stages side by side       all groups of a stage, then those of the next one
    pipelines side by side    all groups of a replica, each in the first free place

Larger groups first leave no gap where each degree divides the next larger one. A placement that
needs more GPUs than there are is left out.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from autopart.records.layouts import StageRanks


class GroupPlaces(NamedTuple):
    """Stages on GPUs."""

    degrees: tuple[int, ...]
    """For each stage its tensor degree."""
    first_gpus: StageRanks
    """For each stage the first GPU of each replica's tensor group."""
    stage_ranks: StageRanks
    """For each stage its ranks, as the plan numbers them: by their first GPU."""

    def around(self, cut: int) -> tuple[int, int]:
        """The degrees of the stages ahead of and behind a cut, counted from 0."""
        return self.degrees[cut], self.degrees[cut + 1]

    def groups(self, stage: int) -> tuple[int, ...]:
        """A stage's ranks in the cluster whose ranks are all tensor groups of the stage's degree."""
        return tuple(gpu // self.degrees[stage] for gpu in self.first_gpus[stage])


@functools.lru_cache(maxsize=4096)
def placements(gpus: int, degrees: tuple[int, ...], replicas: int) -> tuple[GroupPlaces, ...]:
    """The placements of `replicas` groups of each stage on so many GPUs; empty where none has room."""
    if replicas * sum(degrees) > gpus:
        return ()
    by_size = sorted(range(len(degrees)), key=lambda stage: -degrees[stage])
    side_by_side = [(stage, replica) for stage in by_size for replica in range(replicas)]
    pipelines = [(stage, replica) for replica in range(replicas) for stage in by_size]
    found = [
        taken
        for taken in (
            _stages_side_by_side(gpus, degrees, side_by_side),
            _first_free(gpus, degrees, pipelines),
        )
        if taken is not None
    ]
    return tuple(dict.fromkeys(placed(degrees, taken, replicas) for taken in found))


Taken = dict[tuple[int, int], int]
"""The first GPU for each stage and replica."""


def placed(degrees: tuple[int, ...], taken: Taken, replicas: int) -> GroupPlaces:
    """The placement of tensor groups that start at some GPUs; a GPU between them is a rank of its own."""
    first_gpus = tuple(
        tuple(taken[stage, replica] for replica in range(replicas)) for stage in range(len(degrees))
    )
    size = {taken[stage, replica]: degrees[stage] for stage, replica in taken}
    rank_at: dict[int, int] = {}
    gpu = 0
    while gpu <= max(size):
        rank_at[gpu] = len(rank_at)
        gpu += size.get(gpu, 1)
    ranks = tuple(tuple(rank_at[gpu] for gpu in own) for own in first_gpus)
    return GroupPlaces(degrees, first_gpus, ranks)


def _stages_side_by_side(
    gpus: int, degrees: Sequence[int], order: Sequence[tuple[int, int]]
) -> Taken | None:
    taken: Taken = {}
    at = 0
    for stage, replica in order:
        at = -(-at // degrees[stage]) * degrees[stage]
        taken[stage, replica] = at
        at += degrees[stage]
    return taken if at <= gpus else None


def _first_free(
    gpus: int, degrees: Sequence[int], order: Sequence[tuple[int, int]]
) -> Taken | None:
    """Each group at the first multiple of its size where all its GPUs are free."""
    taken: Taken = {}
    used = bytearray(gpus)
    start = dict.fromkeys(degrees, 0)
    for stage, replica in order:
        t = degrees[stage]
        at = next((g for g in range(start[t], gpus - t + 1, t) if not any(used[g : g + t])), None)
        if at is None:
            return None
        taken[stage, replica] = at
        used[at : at + t] = b"\x01" * t
        start[t] = at + t
    return taken
