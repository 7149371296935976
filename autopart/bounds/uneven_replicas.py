"""Lower bounds on the step from one stage, by its cuts and its number of ranks alone.

Symbols   [i, j]  the stage between two cuts, N in all, with its place in the pipeline left open
          r       its ranks, among G in all; m microbatches per step, n = ceil(m / r) on one rank
          f, b    its forward and backward seconds for one microbatch, each with its fixed cost
          F, B    forward and backward seconds of all layers before cut i;  T  of the whole model
          u       update of a first stage;  e  ranks behind

Whatever the other stages and their ranks are, a step with this stage takes at least

    F + n (f + b) + max(B + u, sync + update)                                                    (1)
    1F1B    T + (n - y) (f + b) + (y - 1) max(f, b) + u,    y = min(ceil(e / r) + 1, n)          (2)
            T + turns down to the last stage and back (autopart/bounds/classic_schedules.py) + u (4)
    GPipe   T + max((n - 1) max(f, b), p f + (n - 1) b) + u,    p = floor((m - e) / r)           (3)

with its own sends over the better link. A sync over r ranks takes the link within one node where
they fit there. With a network record it has the least price of r ranks on any nodes. (1) is one rank's work between the first microbatch's path to it and the last one's
path back. (2) is one microbatch's whole path, and the rank's other actions before or behind it.
(3): the last stage has at most e ranks. Its first rank starts no backward before its last forward,
whose microbatch has number m - e or a later one. So that backward lies behind p more forwards on
one of this stage's ranks. Then follow the first microbatch's path back, and n - 1 more backwards on
this stage's first rank.

Where GPUs differ, [i, j] runs on the r ranks before the last e, with their slowest speed and
smallest memory. Ranks may be passed over, so e is then the most that can be behind, and memory is
asked with none behind. autopart/bounds/open_replicas.py finds the plans that these bounds leave
open.
"""

from typing import NamedTuple

import msgspec
import numpy as np

from autopart.activations.best_totals import least_totals_on_replicas
from autopart.bounds.classic_schedules import turns_beside_trip
from autopart.bounds.microbatch_path import Mask, Matrix, MicrobatchPath, path_on_any_ranks
from autopart.cost.cuts import Cuts, allowed
from autopart.cost.memory_limits import Limits, stage_fits
from autopart.cost.on_ranks import on_replicas
from autopart.cost.stage_syncs import time_after_backward
from autopart.cost.syncs import least_sync_price, update_share
from autopart.cost.tied_syncs import without_shared_ties
from autopart.records.cluster import fastest_speed, host_share, num_gpus
from autopart.records.problem import Problem
from autopart.schedules.actions import microbatches_per_replica
from autopart.schedules.named.one_f_one_b import in_flight_on_rank

KEPT_ENTRIES = 1 << 25
"""Matrix entries that are kept for the next value: 256 MB."""


class ReplicaBounds:
    """The bounds (1) to (3) for a problem's stages."""

    def __init__(self, problem: Problem, cuts: Cuts) -> None:
        self.problem, self.cuts = problem, cuts
        self.gpus, self.m = num_gpus(problem.cluster), problem.num_microbatches
        self.counts = range(1, min(self.gpus, self.m) + 1)
        # The place of a stage is open, so pins to numbered stages are not asked.
        groups = msgspec.structs.replace(problem.demands, pins=())
        self.may: Mask = allowed(cuts, problem.graph, groups, 0)
        self._kept: dict[tuple[int, float], _Parts] = {}

    def bound(self, schedule: str, count: int, speed: float, behind: int) -> Matrix:
        """Seconds that no step can beat with [i, j] on `count` ranks, shape (N, N).

        At most `behind` ranks lie behind it. `speed` is relative to the profile's device.
        """
        parts = self._parts(count, speed)
        others = self._others(parts, schedule, count, behind)
        return np.maximum(parts.alone, parts.trip + others)

    def _others(self, parts: "_Parts", schedule: str, count: int, behind: int) -> Matrix:
        """The rank's other actions in (2) to (4), in seconds."""
        own = microbatches_per_replica(self.m, count)
        f, b = parts.busy_forward, parts.busy_backward
        if schedule == "gpipe":
            passed = min(max((self.m - behind) // count, 0), own - 1)
            others = np.maximum((own - 1) * f, passed * f + (own - 1) * b)
        else:
            y = in_flight_on_rank(self.m, behind, count)
            others = (own - y) * (f + b) + (y - 1) * np.maximum(f, b)
            if y < own:
                overlap = self.problem.cluster.sends_overlap
                turns = turns_beside_trip(parts.path, own, y, sends_overlap=overlap)
                others = np.maximum(others, turns)
        return others

    def through(self, schedule: str, count: int, behind: int) -> Matrix:
        """`bound` along paths that end with the way back of the last microbatch, on GPUs alike.

        A rank whose microbatches come late takes that much longer
        (autopart/bounds/waiting_replicas.py).
        """
        parts = self._parts(count, fastest_speed(self.problem.cluster))
        others = self._others(parts, schedule, count, behind)
        return np.maximum(parts.alone_to_end, parts.trip + others)

    def path(self, count: int) -> MicrobatchPath[Matrix]:
        """One microbatch's path around every [i, j] on `count` ranks, on GPUs alike."""
        return self._parts(count, fastest_speed(self.problem.cluster)).path

    def fits(self, schedule: str, count: int, behind: int, limit: int) -> Mask:
        """Whether [i, j] on `count` ranks with `behind` ranks behind it fits into `limit` bytes."""
        in_flight = microbatches_per_replica(self.m, count)
        if schedule == "1f1b":
            in_flight = in_flight_on_rank(self.m, behind, count)
        limits = Limits(in_flight, limit, host_share(self.problem.cluster))
        totals = least_totals_on_replicas(self.problem, self.cuts, count, limits)
        return stage_fits(totals, self.problem, count, limits, in_flight)

    def _parts(self, count: int, speed: float) -> "_Parts":
        """`_compute_parts`, which is kept as long as there is room."""
        key = count, speed
        if key in self._kept:
            return self._kept[key]
        found = self._compute_parts(count, speed)
        if 3 * len(found) * (len(self._kept) + 1) * found.alone.size <= KEPT_ENTRIES:
            self._kept[key] = found
        return found

    def _compute_parts(self, count: int, speed: float) -> "_Parts":
        cluster, training = self.problem.cluster, self.problem.training
        overlap, own = cluster.sends_overlap, microbatches_per_replica(self.m, count)
        totals = on_replicas(self.cuts.totals, self.problem, count, speed)
        path = path_on_any_ranks(self.problem, self.cuts, totals)
        # u: the first stage may be any one, on as many replicas as share an update at most.
        update = self.cuts.totals.update_time[0, 1:].min() / fastest_speed(cluster)
        update = update / update_share(training, self.counts[-1])
        busy_f, busy_b = path.busy(sends_overlap=overlap)
        fill, drain = path.fill(sends_overlap=overlap), path.drain(sends_overlap=overlap)
        price = least_sync_price(cluster, range(count, count + 1), training)
        unshared = without_shared_ties(self.problem, self.cuts, totals)
        end = time_after_backward(self.problem, unshared, price, count, stage=None)
        alone = fill + own * (busy_f + busy_b) + np.maximum(drain + update, end)
        return _Parts(
            alone=np.where(self.may, alone, np.inf),
            alone_to_end=fill + own * (busy_f + busy_b) + drain + update,
            trip=path.with_sends(path.compute) + update,
            busy_forward=busy_f,
            busy_backward=busy_b,
            path=path,
        )


class _Parts(NamedTuple):
    """Parts that make up the bounds for one number of ranks, in seconds: matrices, shape (N, N)."""

    alone: Matrix
    """(1), infinite where there is no stage."""
    alone_to_end: Matrix
    """(1) without the stage's own sync and update."""
    trip: Matrix
    """T, and the sends and the update on one microbatch's path."""
    busy_forward: Matrix
    busy_backward: Matrix
    path: MicrobatchPath[Matrix]
