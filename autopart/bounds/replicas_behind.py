"""The smallest possible largest bound of all stages behind a cut, for each number of ranks behind.

Each stage [i, j] on r ranks, with e ranks behind it, has the bounds of
autopart/bounds/uneven_replicas.py. They depend on r and on one whole number that e gives. L(e, i)
is the least value that no plan with e ranks behind cut i goes below, from there on:

    L(0, last) = 0
    L(e + r, i) = min { max( L(e, j), bound of [i, j] on r ranks before e ) :  [i, j] fits }

So a plan on e ranks takes at least L(e, first) seconds. Where GPUs differ, ranks may be passed
over: L(e) is then at most L(e - 1).

O(N² G²) for N cuts and G ranks, with bounds for O(G log G) different stages.
"""

import functools

import numpy as np

from autopart.bounds.microbatch_path import Matrix
from autopart.bounds.uneven_replicas import KEPT_ENTRIES, ReplicaBounds
from autopart.records.cluster import slowest_speed, smallest_memory
from autopart.schedules.named.one_f_one_b import warmup
from autopart.stopping.time_limit import check_time

_Key = tuple[int, int, float, int]
"""Ranks, the number that the ranks behind give, speed and memory."""


class ReplicasBehind:
    """L for one schedule; with demanded stages, one L for each number of stages behind."""

    def __init__(self, bounds: ReplicaBounds, schedule: str) -> None:
        self.bounds, self.schedule = bounds, schedule
        self._kept: dict[_Key, Matrix] = {}
        self._latest: dict[int, tuple[_Key, Matrix]] = {}
        last = np.full((bounds.gpus + 1, len(bounds.cuts.nested)), np.inf)
        last[slice(None) if bounds.problem.cluster.gpus else 0, -1] = 0.0
        self.least: list[Matrix] = [last]
        """L(e, i) at [e, i], shape (G + 1, N); behind 0, 1, … stages where a number is demanded."""
        demanded = bounds.problem.demands.num_stages
        if demanded is None:
            self._add_a_stage(last, last)
        for _ in range(demanded or 0):
            more = np.full_like(last, np.inf)
            self._add_a_stage(self.least[-1], more)
            self.least.append(more)

    def in_all(self) -> Matrix:
        """L(e, first) in seconds for all layers, by e."""
        return self.least[-1][:, 0]

    def stage(self, count: int, behind: int) -> Matrix:
        """Bounds in seconds on [i, j] on `count` ranks before the last `behind`.

        Infinite where it does not fit.
        """
        bounds, cluster = self.bounds, self.bounds.problem.cluster
        window = range(bounds.gpus - behind - count, bounds.gpus - behind)
        speed, limit = slowest_speed(cluster, window), smallest_memory(cluster, window)
        # Bound and memory depend on the ranks behind through one whole number only.
        turns = (bounds.m - behind) // count if self.schedule == "gpipe" else warmup(behind, count)
        key = count, turns, speed, limit
        if key in self._kept:
            return self._kept[key]
        latest = self._latest.get(count)
        if latest is None or latest[0] != key:
            seconds = bounds.bound(self.schedule, count, speed, behind)
            fits = bounds.fits(self.schedule, count, 0 if cluster.gpus else behind, limit)
            latest = self._latest[count] = key, np.where(fits, seconds, np.inf)
            if (len(self._kept) + 1) * latest[1].size <= KEPT_ENTRIES:
                self._kept[key] = latest[1]
        return latest[1]

    def _add_a_stage(self, behind: Matrix, more: Matrix) -> None:
        """Lower `more` to L with one stage more than `behind` has.

        Where both are the same matrix, any number is added: L(e) is complete before e is reached.
        """
        mixed = bool(self.bounds.problem.cluster.gpus)
        for later in range(self.bounds.gpus):
            check_time()
            # Step 1: different GPUs may be passed over.
            if mixed and later:
                np.minimum(more[later], more[later - 1], out=more[later])
            # Step 2: put a stage on `count` ranks ahead of every cut that `later` ranks can follow.
            ends = np.flatnonzero(behind[later] < np.inf)
            for count in self.bounds.counts if len(ends) else ():
                if count > self.bounds.gpus - later:
                    break
                largest = np.maximum(self.stage(count, later)[:, ends], behind[later, ends])
                row = more[later + count]
                np.minimum(row, largest.min(axis=1), out=row)
        if mixed:
            np.minimum(more[-1], more[-2], out=more[-1])


@functools.lru_cache(maxsize=4)
def replicas_behind(bounds: ReplicaBounds, schedule: str) -> ReplicasBehind:
    """L for a schedule, kept for the next value."""
    return ReplicasBehind(bounds, schedule)
