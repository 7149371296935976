"""Lower bounds on the step where each stage has its own tensor degree.

Symbols   R          replicas of every stage; M / R microbatches on each rank
          [i, j]     the stage between cuts i and j;  t its degree;  n stages behind it
          b(t, n)    seconds that no step with such a stage can beat, shape (N, N) for N cuts

    b(t, n)   the largest of the chains of autopart/bounds/classic_schedules.py. The stage itself is
              exact. Ahead and behind, the path takes any number of stages with any degrees and the
              fewest seconds; sends take the best link and the neighbour that makes them shortest
    e(t, n)   what (2) to (5) there add to T + S, the whole path of one microbatch: no step with the
              stage is faster than this path and e

No plan is faster than its largest b. A plan that beats a value has only stages with b below it. Stages
that do not fit into memory have an infinite b. Pins to numbered stages, and tied parameters with one
degree, are not asked here. autopart/stage_degrees/completions.py bounds the rest of a plan.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from autopart.activations.best_totals import BestTotals
from autopart.activations.policies import leaves_choice
from autopart.bounds.classic_schedules import chains
from autopart.bounds.microbatch_path import Mask, Matrix, MicrobatchPath
from autopart.cost.cuts import Cuts, all_cuts, allowed
from autopart.cost.links import link_across
from autopart.cost.memory_limits import fits_on_ranks
from autopart.cost.on_ranks import on_replicas
from autopart.cost.stage_syncs import time_after_backward
from autopart.cost.stage_times import traffic_times
from autopart.cost.stage_totals import Array, StageTotals, Traffic
from autopart.cost.syncs import least_sync_price
from autopart.cost.tied_syncs import without_shared_ties
from autopart.records.cluster import fastest_speed, num_gpus
from autopart.records.layouts import Layout, side_by_side
from autopart.records.problem import CLASSIC
from autopart.schedules.named.one_f_one_b import in_flight_on_rank
from autopart.stage_degrees.problem import DegreesProblem
from autopart.stage_degrees.resharding import traffic_between
from autopart.stopping.time_limit import check_time

Row = npt.NDArray[np.float64]
"""Floats for each of N cuts."""


class _LeastSeconds(NamedTuple):
    """The fewest seconds of a microbatch ahead of each cut or behind it, without the sends over it."""

    forward: Row
    backward: Row
    both: Row


class StageBounds(NamedTuple):
    """The bounds of every [i, j] with one degree in one place, shape (N, N); infinite where it does not fit."""

    bound: Matrix
    """b."""
    trip: Matrix
    """F and B of one microbatch on the stage."""
    beside: Matrix
    """e."""


class DegreeBounds:
    """The bounds of one problem, kept for all schedules and replicas."""

    def __init__(self, problem: DegreesProblem) -> None:
        self.problem = problem
        self.cuts: list[Cuts] = []
        for own in problem.of_groups:
            check_time()
            self.cuts.append(all_cuts(own.graph))
        self._best = [BestTotals(cuts) for cuts in self.cuts]
        demands = msgspec.structs.replace(problem.of_gpus.demands, pins=())
        self._may: Mask = allowed(self.cuts[0], problem.of_gpus.graph, demands, 0)
        self._speed = fastest_speed(problem.of_gpus.cluster)
        self._kept: dict[tuple[str, int, int, int, bool], StageBounds] = {}
        self._first_ends: dict[int, float] = {}

    @property
    def complete(self) -> bool:
        """Whether paths over the cuts give each partition."""
        return self.cuts[0].complete

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return num_gpus(self.problem.of_gpus.cluster)

    def is_path(self, path: Sequence[int]) -> bool:
        """Whether each two successive cuts have a stage between them."""
        nested = self.cuts[0].nested
        return all(bool(nested[i, j]) for i, j in itertools.pairwise(path))

    def most_stages(self, replicas: int) -> int:
        """The most stages for which there are layers and GPUs, and that the demands allow."""
        whole = self.problem.of_gpus
        room = self.gpus // (replicas * self.problem.degrees[0])
        return min(len(whole.graph.layers), room, whole.demands.num_stages or room)

    def stage(
        self, schedule: str, replicas: int, degree: int, behind: int, *, eased: bool = False
    ) -> "StageBounds":
        """The bounds of every [i, j] with `behind` stages behind it.

        Where it is eased, memory is not asked, and no layer is recomputed or offloaded: a smaller bound.
        """
        count = self.problem.of_gpus.num_microbatches
        turns = in_flight_on_rank(count, behind * replicas, replicas)
        # Under 1F1B the stages behind matter through the microbatches in flight, and as none or some.
        key = schedule, replicas, degree, turns if schedule == "1f1b" else min(behind, 1), eased
        if key not in self._kept:
            check_time()
            left = key[3] - (schedule == "1f1b")
            made = self._stage(schedule, replicas, degree, left, eased=eased)
            self._kept[key] = made
        return self._kept[key]

    def _stage(
        self, schedule: str, replicas: int, degree: int, behind: int, *, eased: bool
    ) -> "StageBounds":
        at = self.problem.degrees.index(degree)
        problem, cuts = self.problem.of_groups[at], self.cuts[at]
        layout = Layout(
            schedule=schedule,
            stage_ranks=side_by_side((replicas,) * (behind + 1)),
            num_microbatches=problem.num_microbatches,
        )
        totals, fits = cuts.totals, self._may
        if not eased:
            if schedule in CLASSIC and leaves_choice(problem.demands):
                totals = self._best[at].best(problem, layout, 0)
            fits = fits & fits_on_ranks(totals, problem, layout, 0)
        totals = on_replicas(totals, problem, replicas, self._speed)
        path, compute = self._path(at, totals)
        own_end = self._end(at, totals, replicas)
        is_first = np.arange(len(self._may)) == 0
        first_end = np.where(is_first[:, None], own_end, self._first_end(replicas))
        beside, alone = chains(problem, layout, 0, path, (own_end, first_end))
        bound = np.maximum(path.with_sends(compute) + beside, alone)
        none = np.where(fits, 0.0, np.inf)
        return StageBounds(bound + none, path.forward + path.backward + none, beside + none)

    def _path(self, at: int, totals: StageTotals[Array]) -> tuple[MicrobatchPath[Matrix], Matrix]:
        """The path around every [i, j], and a microbatch's seconds of compute on all stages."""
        overhead = self.problem.of_gpus.cluster.action_overhead
        sends = self._sends[at]
        forward = totals.forward_time + overhead
        backward = totals.backward_time + overhead
        ahead, behind = self._ahead, self._behind
        path: MicrobatchPath[Matrix] = MicrobatchPath(
            forward=forward,
            backward=backward,
            receive=sends.receive[:, None],
            send=sends.send[None, :],
            receive_back=sends.receive_back[None, :],
            send_back=sends.send_back[:, None],
            compute_before=ahead.forward[:, None],
            compute_beyond=behind.both[None, :],
            compute_after=ahead.backward[:, None],
            sends_before=0.0,
            sends_beyond=0.0,
            sends_after=0.0,
        )
        return path, ahead.both[:, None] + forward + backward + behind.both[None, :]

    def _end(self, at: int, totals: StageTotals[Array], replicas: int) -> Matrix:
        """Seconds from a last backward to the end of the stage's sync and update."""
        problem, cuts = self.problem.of_groups[at], self.cuts[at]
        unshared = without_shared_ties(problem, cuts, totals)
        price = least_sync_price(problem.cluster, range(replicas, replicas + 1), problem.training)
        end: Matrix = time_after_backward(problem, unshared, price, replicas, stage=None)
        return np.broadcast_to(end, self._may.shape)

    def _first_end(self, replicas: int) -> float:
        """The fewest seconds of sync and update on the first stage, whatever its degree and layers."""
        if replicas not in self._first_ends:
            problem, nested = self.problem.of_gpus, self.cuts[0].nested[0]
            plain = [on_replicas(own.totals, problem, replicas, self._speed) for own in self.cuts]
            self._first_ends[replicas] = min(
                float(self._end(at, totals, replicas)[0][nested].min())
                for at, totals in enumerate(plain)
            )
        return self._first_ends[replicas]

    @functools.cached_property
    def _sends(self) -> list["_LeastSends"]:
        """For each degree the shortest sends of a stage over each cut."""
        cluster, degrees = self.problem.of_gpus.cluster, self.problem.degrees
        links = [cluster.intra_node, *([link_across(cluster)] if cluster.num_nodes > 1 else [])]
        # Row 0 of `sent` has the traffic over each cut, and so has column 0 of `received`.
        sent = [Traffic(*(one[0] for one in own.totals.sent)) for own in self.cuts]
        received = [Traffic(*(one[:, 0] for one in own.totals.received)) for own in self.cuts]

        def least(ahead: int, behind: int) -> tuple[Row, Row]:
            pair, split = (degrees[ahead], degrees[behind]), self.problem.sequence_parallel
            traffic = traffic_between(sent[ahead], received[behind], pair, split=split)
            times = [traffic_times(traffic, link) for link in links]
            return (
                np.minimum.reduce([there for there, _ in times]),
                np.minimum.reduce([back for _, back in times]),
            )

        every = range(len(degrees))
        pairs = {(a, b): least(a, b) for a in every for b in every}
        return [
            _LeastSends(
                receive=np.minimum.reduce([pairs[a, own][0] for a in every]),
                send_back=np.minimum.reduce([pairs[a, own][1] for a in every]),
                send=np.minimum.reduce([pairs[own, b][0] for b in every]),
                receive_back=np.minimum.reduce([pairs[own, b][1] for b in every]),
            )
            for own in every
        ]

    @functools.cached_property
    def sends(self) -> Row:
        """The fewest seconds of both sends over each cut, between stages of any degrees."""
        least = [own.send + own.receive_back for own in self._sends]
        return np.minimum.reduce(least)

    @functools.cached_property
    def _ahead(self) -> _LeastSeconds:
        """The fewest seconds ahead of each cut."""
        return self._around(reverse=False)

    @functools.cached_property
    def _behind(self) -> _LeastSeconds:
        """The fewest seconds behind each cut."""
        return self._around(reverse=True)

    def _around(self, *, reverse: bool) -> _LeastSeconds:
        there = np.minimum.reduce([own.send for own in self._sends])
        back = np.minimum.reduce([own.receive_back for own in self._sends])
        forward = [own.totals.forward_time / self._speed for own in self.cuts]
        backward = [own.totals.backward_time / self._speed for own in self.cuts]
        both = [f + b for f, b in zip(forward, backward, strict=True)]
        overhead = self.problem.of_gpus.cluster.action_overhead

        def along(seconds: Sequence[Matrix], fixed: float, sends: Row) -> Row:
            least = np.where(self._may, np.minimum.reduce(seconds) + fixed, np.inf)
            return (
                _shortest(least.T[::-1, ::-1], sends[::-1])[::-1]
                if reverse
                else _shortest(least, sends)
            )

        return _LeastSeconds(
            along(forward, overhead, there),
            along(backward, overhead, back),
            along(both, 2 * overhead, there + back),
        )


class _LeastSends(NamedTuple):
    """The shortest sends over each cut of stages with one degree, with any neighbours."""

    receive: Row
    send_back: Row
    send: Row
    receive_back: Row


def _shortest(stages: Matrix, sends: Row) -> Row:
    """The fewest seconds of a path from the first cut to each cut, with the sends over cuts between.

    `stages` has the seconds of every [i, j]. Later cuts have higher numbers.
    """
    found = np.full(len(stages), np.inf)
    found[0] = 0.0
    inner = np.where(np.arange(len(stages)) > 0, sends, 0.0)
    for j in range(1, len(stages)):
        found[j] = (found[:j] + inner[:j] + stages[:j, j]).min()
    return found
