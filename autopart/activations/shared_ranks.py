"""The policies of partitions on a layout whose stages choose together on each rank.

That is every layout except one under GPipe or 1F1B. There a number of microbatches in flight says enough, and each stage
has a rank of its own. Elsewhere the moments of each rank's order count (autopart/activations/rank_choices.py). Each point
of a stage's frontier comes once for each place that its optimizer state may have. A layout for a plan's own orders has no
moments of its own: its orders are given.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.best_totals import best_totals
from autopart.activations.changes import apply_changes
from autopart.activations.moments import Moments, bytes_at_moments, moments_of
from autopart.activations.policies import optimizer_places
from autopart.activations.rank_choices import (
    SECONDS,
    LeastVectors,
    RankBytes,
    best_choice,
    leanest_choice,
    least_vectors,
)
from autopart.activations.stage_frontiers import StageFrontiers
from autopart.activations.state_places import (
    StatePlace,
    SteppedElements,
    points_of,
    state_places,
    with_first_place,
)
from autopart.cost.cuts import Cuts, totals_at
from autopart.cost.in_flight import ranks_in_flight
from autopart.cost.memory import memory, microbatch_bytes
from autopart.cost.repeated_ties import without_repeats
from autopart.cost.stage_totals import Array, StageTotals
from autopart.cost.tied_syncs import tied_copies
from autopart.records.cluster import host_share, slowest_speed, smallest_memory
from autopart.records.layouts import Layout, StageRanks, one_replica, own_microbatches
from autopart.records.peak_bytes import by_kind
from autopart.records.prediction import LASTING
from autopart.records.problem import Problem, splits_backward
from autopart.schedules.actions import Schedule
from autopart.schedules.in_flight import in_flight_by_rank

Whole = npt.NDArray[np.int64]


class SharedRank(NamedTuple):
    """One rank of a layout's first replica."""

    stages: tuple[int, ...]
    """Its stages, in their order."""
    replicas: int
    speed: float
    """The slowest rank's speed in all replicas, relative to the profile's device."""
    moments: Moments
    limit: int
    """Bytes for everything but the reserve."""


def shared_ranks(
    problem: Problem, layout: Layout, orders: Schedule | None = None
) -> list[SharedRank]:
    """The ranks of a layout's first replica, under its named schedule, or under orders of that replica's ranks."""
    found: list[SharedRank] = []
    one = one_replica(layout)
    every = _moments(one) if orders is None else _moments_of_orders(orders, one.stage_ranks)
    for moments in every:
        stages = moments.in_flight.stages
        ranks = [layout.stage_ranks[s] for s in stages]
        smallest = min(smallest_memory(problem.cluster, own) for own in ranks)
        speed = slowest_speed(problem.cluster, ranks[0])
        limit = smallest - problem.cluster.reserve_bytes
        found.append(SharedRank(stages, len(ranks[0]), speed, moments, limit))
    return found


@functools.lru_cache(maxsize=64)
def _moments(layout: Layout) -> Sequence[Moments]:
    return [moments_of(own) for own in ranks_in_flight(layout).values()]


@functools.lru_cache(maxsize=16)
def _moments_of_orders(orders: Schedule, stage_ranks: StageRanks) -> Sequence[Moments]:
    return [moments_of(own) for own in in_flight_by_rank(orders, stage_ranks)]


def bytes_beside(
    problem: Problem, rank: SharedRank, own: Sequence[StageTotals[Any]]
) -> list[RankBytes]:
    """The bytes of a rank with stages that have these totals, for each of several partitions.

    The totals are numbers, or arrays with an entry for each partition.
    """
    sizes: list[list[Array]] = []
    lasting: Any = 0
    on_host: Any = 0
    for totals in own:
        use = memory(totals, problem, rank.replicas, 0)
        lasting = lasting + sum(np.atleast_1d(getattr(use, kind)) for kind in LASTING)
        on_host = on_host + np.atleast_1d(use.host)
        moving = microbatch_bytes(totals, problem.training)
        sizes.append([np.atleast_1d(each) for each in by_kind(moving)])
    last = np.array([np.atleast_1d(totals.weight_grad_workspace_bytes) for totals in own])
    relayed = np.array(
        [np.broadcast_to(totals.relayed_grad_bytes, last[0].shape) for totals in own]
    )
    every = np.array(sizes).swapaxes(0, 1)
    beside = bytes_at_moments(rank.moments, every, lasting, last, relayed)
    share = host_share(problem.cluster)
    return [
        RankBytes(column, rank.limit, int(hosted), share)
        for column, hosted in zip(beside.T, on_host, strict=True)
    ]


class SharedRanks:
    """The policies of partitions along cuts, on one layout with a named schedule or given orders."""

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        cuts: Cuts,
        *,
        orders: Schedule | None = None,
        fewest_bytes: bool = False,
    ) -> None:
        """With `fewest_bytes` the rule takes the choice with the fewest bytes; `orders` as in `shared_ranks`."""
        self.problem, self.layout, self.cuts = problem, layout, cuts
        self._fewest_bytes = fewest_bytes
        self.ranks = shared_ranks(problem, layout, orders)
        split, known = splits_backward(layout.schedule), best_totals(cuts)
        self._frontiers: dict[int, StageFrontiers] = {
            stage: known.of_shared_ranks(problem, rank.speed, split=split)
            for rank in self.ranks
            for stage in rank.stages
        }
        self._chosen: dict[tuple[object, ...], tuple[int, ...]] = {}

    def totals(self, routes: Whole) -> list[StageTotals[Array]]:
        """Each stage's totals under the rule, with an entry for each route over the cuts.

        `routes` has the shape (routes, stages + 1).
        """
        plain, numbers = self._plain(routes), self._numbers(routes)
        once = self._once(routes, plain)
        chosen = np.zeros(numbers.shape, dtype=np.int64)
        for at, rank in enumerate(self.ranks):
            own = list(rank.stages)
            beside = bytes_beside(self.problem, rank, [once[s] for s in own])
            for row, (kept, ids) in enumerate(zip(beside, numbers[:, own], strict=True)):
                states = tuple(self._state_places(rank, s, plain, once, row) for s in own)
                chosen[row, own] = self._choice(at, ids, states, kept)
        return self._with_points(numbers, plain, chosen)

    def with_seconds(self, route: Sequence[int], seconds: Array) -> list[StageTotals[Array]]:
        """Each stage's totals with so many added seconds, shape (choices, `SECONDS`, stages).

        Their bytes mean nothing.
        """
        routes = np.broadcast_to(np.array(route), (len(seconds), len(route)))
        forward, backward, update = (seconds[:, at] for at in range(len(SECONDS)))
        return [
            totals._replace(
                forward_time=totals.forward_time + forward[:, s],
                backward_time=totals.backward_time + backward[:, s],
                # Seconds for the update are those of the copies, wherever there are any.
                optimizer_on_host=np.maximum(totals.optimizer_on_host, update[:, s] > 0),
            )
            for s, totals in enumerate(self._plain(routes))
        ]

    def vectors(self, route: Sequence[int]) -> list[LeastVectors] | None:
        """The least vectors of each rank, for one route; None where some rank lacks memory."""
        routes = np.array([route])
        plain, numbers = self._plain(routes), self._numbers(routes)[0]
        once = self._once(routes, plain)
        found: list[LeastVectors] = []
        for rank in self.ranks:
            own = list(rank.stages)
            (beside,) = bytes_beside(self.problem, rank, [once[s] for s in own])
            stages = [
                points_of(
                    self._frontiers[s].ended(numbers[s]), self._state_places(rank, s, plain, once)
                )
                for s in own
            ]
            vectors = least_vectors(rank.moments, beside, stages)
            if vectors is None:
                return None
            found.append(vectors)
        return found

    def _with_points(
        self, numbers: Whole, plain: Sequence[StageTotals[Array]], chosen: Whole
    ) -> list[StageTotals[Array]]:
        """Each stage's totals at given points, shape (routes, stages), as `points_of` numbers them."""
        places = np.array(optimizer_places(self.problem.demands), dtype=np.int64)
        found: list[StageTotals[Array]] = []
        for s, totals in enumerate(plain):
            frontiers, own = self._frontiers[s], numbers[:, s]
            place, point = np.divmod(chosen[:, s], frontiers.lengths(own))
            changed = apply_changes(totals, frontiers.changes(own, point))
            found.append(changed._replace(optimizer_on_host=places[place]))
        return found

    def _state_places(
        self,
        rank: SharedRank,
        stage: int,
        plain: Sequence[StageTotals[Array]],
        once: Sequence[StageTotals[Array]],
        row: int = 0,
    ) -> tuple[StatePlace, ...]:
        count, own = own_microbatches(self.layout, rank.stages[0]), once[stage]
        elements = (plain[stage].num_trainable, own.num_trainable, own.widest_trainable)
        sizes = SteppedElements(*(int(each[row]) for each in elements))
        return state_places(self.problem, rank, count, sizes)

    def _once(self, routes: Whole, plain: Sequence[StageTotals[Array]]) -> list[StageTotals[Array]]:
        copies = tied_copies(self.problem, self.cuts, routes)
        return without_repeats(self.problem, self.layout.stage_ranks, plain, copies)

    def _plain(self, routes: Whole) -> list[StageTotals[Array]]:
        totals = with_first_place(self.problem, self.cuts.totals)
        return [
            totals_at(totals, routes[:, s], routes[:, s + 1]) for s in range(routes.shape[1] - 1)
        ]

    def _numbers(self, routes: Whole) -> Whole:
        """The number of each stage's frontier, shape (routes, stages)."""
        return np.column_stack(
            [
                self._frontiers[s].numbers(*routes[:, s : s + 2].T)
                for s in range(routes.shape[1] - 1)
            ]
        )

    def _choice(
        self,
        rank: int,
        numbers: Whole,
        states: tuple[tuple[StatePlace, ...], ...],
        beside: RankBytes,
    ) -> tuple[int, ...]:
        """The points of one rank's stages under the rule; equal questions are answered once."""
        key = rank, tuple(numbers.tolist()), states, beside.beside.tobytes(), beside.on_host
        if key not in self._chosen:
            one = self.ranks[rank]
            stages = [
                points_of(self._frontiers[s].ended(number), own)
                for s, number, own in zip(one.stages, key[1], states, strict=True)
            ]
            self._chosen[key] = (
                leanest_choice(one.moments, beside, stages)
                if self._fewest_bytes
                else best_choice(one.moments, beside, stages)
            )
        return self._chosen[key]


@functools.lru_cache(maxsize=4)
def shared_ranks_of(problem: Problem, layout: Layout, cuts: Cuts) -> SharedRanks:
    """The policies on a layout, with the choices that were made before."""
    return SharedRanks(problem, layout, cuts)
