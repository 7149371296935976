"""Small changes to the replicas of a plan: one GPU moves, two stages become one, or one becomes two."""

import itertools
from collections.abc import Iterator

from autopart.bounds.open_replicas import Counts
from autopart.records.cluster import num_gpus
from autopart.records.problem import Problem


def neighbours(problem: Problem, counts: Counts) -> Iterator[Counts]:
    """Replicas after one GPU was moved, added or left out, two stages joined, or one split."""
    free, most = num_gpus(problem.cluster) - sum(counts), problem.num_microbatches
    yield from _moved(counts, free, most)
    if problem.demands.num_stages is None:
        for at in range(len(counts) - 1):
            joined = min(most, counts[at] + counts[at + 1])
            yield (*counts[:at], joined, *counts[at + 2 :])
        if len(counts) < len(problem.graph.layers):
            yield from _split(counts, free)


def _moved(counts: Counts, free: int, most: int) -> Iterator[Counts]:
    """Replicas after one GPU went from a stage, or from the `free` ones, to another place.

    A stage has at most `most` of them.
    """
    for at, to in itertools.permutations((*range(len(counts)), None), 2):
        changed = list(counts)
        if at is not None:
            changed[at] -= 1
        if to is not None:
            changed[to] += 1
        if min(changed) >= 1 and max(changed) <= most and (at is not None or free):
            yield tuple(changed)


def _split(counts: Counts, free: int) -> Iterator[Counts]:
    """One stage in two, on its own ranks or with a free one beside them."""
    for at, count in enumerate(counts):
        for ahead in range(1, count):
            yield (*counts[:at], ahead, count - ahead, *counts[at + 1 :])
        if free:
            yield (*counts[:at], count, 1, *counts[at + 1 :])
            yield (*counts[:at], 1, count, *counts[at + 1 :])
