"""The policies of partitions on a layout whose stages choose together on each rank.

That is every layout except one under GPipe or 1F1B. There a number of microbatches in flight says enough, and each stage
has a rank of its own. Elsewhere the moments of each rank's order count (autopart/activations/rank_choices.py). Stash is
kept or recomputed; nothing is offloaded.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.best_totals import best_totals
from autopart.activations.changes import PolicyChanges, apply_changes
from autopart.activations.frontier import Points
from autopart.activations.rank_choices import (
    LeastVectors,
    Moments,
    StagePoints,
    best_choice,
    bytes_at_moments,
    leanest_choice,
    least_vectors,
    moments_of,
)
from autopart.activations.stage_frontiers import StageFrontiers
from autopart.cost.cuts import Cuts, totals_at
from autopart.cost.in_flight import ranks_in_flight
from autopart.cost.memory import memory, microbatch_bytes
from autopart.cost.stage_totals import Array, StageTotals
from autopart.records.cluster import smallest_memory
from autopart.records.layouts import Layout, one_replica
from autopart.records.peak_bytes import by_kind
from autopart.records.prediction import LASTING
from autopart.records.problem import Problem, splits_backward

Whole = npt.NDArray[np.int64]


class SharedRank(NamedTuple):
    """One rank of a layout's first replica."""

    stages: tuple[int, ...]
    """Its stages, in their order."""
    moments: Moments
    limit: int
    """Bytes for everything but the reserve."""


def shared_ranks(problem: Problem, layout: Layout) -> list[SharedRank]:
    """The ranks of a layout's first replica, under the layout's named schedule."""
    return [
        SharedRank(
            moments.in_flight.stages,
            moments,
            _smallest(problem, layout, moments.in_flight.stages) - problem.cluster.reserve_bytes,
        )
        for moments in _moments(one_replica(layout)).values()
    ]


@functools.lru_cache(maxsize=64)
def _moments(layout: Layout) -> Mapping[int, Moments]:
    return {rank: moments_of(own) for rank, own in ranks_in_flight(layout).items()}


def _smallest(problem: Problem, layout: Layout, stages: Sequence[int]) -> int:
    return min(smallest_memory(problem.cluster, layout.stage_ranks[s]) for s in stages)


def kept_bytes_on(
    problem: Problem, layout: Layout, rank: SharedRank, own: Sequence[StageTotals[Any]]
) -> Array:
    """c for a rank with stages that have these totals, shape (moments, partitions).

    The totals are numbers, or arrays with an entry for each partition.
    """
    sizes: list[list[Array]] = []
    lasting: Any = 0
    for stage, totals in zip(rank.stages, own, strict=True):
        use = memory(totals, problem, len(layout.stage_ranks[stage]), 0)
        lasting = lasting + sum(np.atleast_1d(getattr(use, kind)) for kind in LASTING)
        moving = microbatch_bytes(totals)
        sizes.append([np.atleast_1d(each) for each in by_kind(moving)])
    last = np.array([np.atleast_1d(totals.weight_grad_workspace_bytes) for totals in own])
    return bytes_at_moments(rank.moments, np.array(sizes).swapaxes(0, 1), lasting, last)


def points_of(points: Points) -> StagePoints:
    """A frontier's columns that a rank's choice reads."""
    return StagePoints(*(getattr(points, name) for name in StagePoints._fields))


class SharedRanks:
    """The policies of partitions along cuts, on one layout with a named schedule."""

    def __init__(
        self, problem: Problem, layout: Layout, cuts: Cuts, *, fewest_bytes: bool = False
    ) -> None:
        """With `fewest_bytes` the rule takes the choice with the fewest bytes, whatever fits."""
        self.problem, self.layout, self.cuts = problem, layout, cuts
        self._fewest_bytes = fewest_bytes
        self.ranks = shared_ranks(problem, layout)
        split = splits_backward(layout.schedule)
        self._frontiers: StageFrontiers = best_totals(cuts).of_shared_ranks(problem, split=split)
        self._chosen: dict[tuple[int, tuple[int, ...], bytes], tuple[int, ...]] = {}

    def totals(self, routes: Whole) -> list[StageTotals[Array]]:
        """Each stage's totals under the rule, with an entry for each route over the cuts.

        `routes` has the shape (routes, stages + 1).
        """
        plain, numbers = self._plain(routes), self._numbers(routes)
        chosen = np.zeros(numbers.shape, dtype=np.int64)
        for at, rank in enumerate(self.ranks):
            own = list(rank.stages)
            beside = kept_bytes_on(self.problem, self.layout, rank, [plain[s] for s in own])
            for row, (bytes_, ids) in enumerate(zip(beside.T, numbers[:, own], strict=True)):
                chosen[row, own] = self._choice(at, ids, bytes_)
        return self.with_points(routes, chosen)

    def with_points(self, routes: Whole, chosen: Whole) -> list[StageTotals[Array]]:
        """Each stage's totals at given points of its frontier, shape (routes, stages)."""
        numbers = self._numbers(routes)
        return [
            apply_changes(totals, self._frontiers.changes(numbers[:, s], chosen[:, s]))
            for s, totals in enumerate(self._plain(routes))
        ]

    def with_seconds(self, route: Sequence[int], seconds: Array) -> list[StageTotals[Array]]:
        """Each stage's totals with so many added seconds, shape (choices, stages). Their bytes mean nothing."""
        routes = np.broadcast_to(np.array(route), (len(seconds), len(route)))
        return [
            totals._replace(backward_time=totals.backward_time + seconds[:, s])
            for s, totals in enumerate(self._plain(routes))
        ]

    def vectors(self, route: Sequence[int]) -> list[LeastVectors] | None:
        """The least vectors of each rank, for one route; None where some rank lacks memory."""
        routes = np.array([route])
        plain, numbers = self._plain(routes), self._numbers(routes)[0]
        found: list[LeastVectors] = []
        for rank in self.ranks:
            own = list(rank.stages)
            beside = kept_bytes_on(self.problem, self.layout, rank, [plain[s] for s in own])[:, 0]
            stages = [points_of(self._frontiers.ended(numbers[s])) for s in own]
            vectors = least_vectors(rank.moments, beside, stages, rank.limit)
            if vectors is None:
                return None
            found.append(vectors)
        return found

    def _plain(self, routes: Whole) -> list[StageTotals[Array]]:
        return [
            totals_at(self.cuts.totals, routes[:, s], routes[:, s + 1])
            for s in range(routes.shape[1] - 1)
        ]

    def _numbers(self, routes: Whole) -> Whole:
        """The number of each stage's frontier, shape (routes, stages)."""
        starts, ends = routes[:, :-1], routes[:, 1:]
        return self._frontiers.numbers(starts.ravel(), ends.ravel()).reshape(starts.shape)

    def _choice(self, rank: int, numbers: Whole, beside: Array) -> tuple[int, ...]:
        """The points of one rank's stages under the rule; equal questions are answered once."""
        key = rank, tuple(numbers.tolist()), beside.tobytes()
        if key not in self._chosen:
            one = self.ranks[rank]
            stages = [points_of(self._frontiers.ended(number)) for number in key[1]]
            self._chosen[key] = (
                leanest_choice(one.moments, beside, stages)
                if self._fewest_bytes
                else best_choice(one.moments, beside, stages, one.limit)
            )
        return self._chosen[key]


@functools.lru_cache(maxsize=4)
def shared_ranks_of(problem: Problem, layout: Layout, cuts: Cuts) -> SharedRanks:
    """The policies on a layout, with the choices that were made before."""
    return SharedRanks(problem, layout, cuts)


def changes_at(points: Points, place: int) -> PolicyChanges[float]:
    """The changes at one point of a frontier, as plain numbers."""
    return PolicyChanges(*(getattr(points, name)[place].item() for name in PolicyChanges._fields))
