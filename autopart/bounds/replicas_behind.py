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

TOGETHER = 16
"""Numbers of ranks behind that are looked at side by side."""

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
        self._added, self._next = 0, 0
        """Stages that were added, and the first ranks behind that the next one has not looked at."""

    def complete(self) -> "ReplicasBehind":
        """Compute L. Where time ends before it is complete, the next call goes on from there."""
        demanded = self.bounds.problem.demands.num_stages
        while self._added < (demanded or 1):
            if demanded is not None and len(self.least) == self._added + 1:
                self.least.append(np.full_like(self.least[0], np.inf))
            self._add_a_stage(self.least[self._added], self.least[-1])
            self._added, self._next = self._added + 1, 0
        return self

    def in_all(self) -> Matrix:
        """L(e, first) in seconds for all layers, by e."""
        return self.complete().least[-1][:, 0]

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
        if not mixed:
            self._add_to_alike(behind, more)
            return
        for later in range(self.bounds.gpus):
            check_time()
            # Step 1: different GPUs may be passed over.
            if later:
                np.minimum(more[later], more[later - 1], out=more[later])
            # Step 2: put a stage on `count` ranks ahead of every cut that `later` ranks can follow.
            for count in self.bounds.counts:
                if count > self.bounds.gpus - later:
                    break
                self._put_ahead(behind, more, count, range(later, later + 1))
        np.minimum(more[-1], more[-2], out=more[-1])

    def _add_to_alike(self, behind: Matrix, more: Matrix) -> None:
        """`_add_a_stage` for GPUs alike: many numbers of ranks behind at once, for larger stages."""
        gpus = self.bounds.gpus
        for first in range(self._next, gpus, TOGETHER):
            together = range(first, min(first + TOGETHER, gpus))
            # Step 1: small stages reach numbers of ranks that are looked at here.
            for later in together:
                check_time()
                for count in self.bounds.counts[: min(TOGETHER - 1, gpus - later)]:
                    self._put_ahead(behind, more, count, range(later, later + 1))
            # Step 2: larger ones do not, so L is complete for all of them.
            for count in self.bounds.counts[TOGETHER - 1 : gpus - first]:
                check_time()
                at = first
                while at < together.stop and at + count <= gpus:
                    # As many as give one bound.
                    end = self._alike_until(count, at)
                    self._put_ahead(behind, more, count,
                                    range(at, min(end, together.stop, gpus - count + 1)))  # fmt: skip
                    at = end
            self._next = together.stop

    def _alike_until(self, count: int, behind: int) -> int:
        """The first number of ranks behind from `behind` on with another bound on `count` ranks."""
        if self.schedule == "gpipe":
            return behind + (self.bounds.m - behind) % count + 1
        return -(-behind // count) * count + 1

    def _put_ahead(self, behind: Matrix, more: Matrix, count: int, later: range) -> None:
        """Lower `more` with a stage on `count` ranks, ahead of `later` ranks that give one bound."""
        ends = np.flatnonzero((behind[later.start : later.stop] < np.inf).any(axis=0))
        if len(ends):
            stage = self.stage(count, later.start)[:, ends]
            largest = np.maximum(stage, behind[later.start : later.stop, None, ends])
            rows = more[later.start + count : later.stop + count]
            np.minimum(rows, largest.min(axis=2), out=rows)


def replicas_behind(bounds: ReplicaBounds, schedule: str) -> ReplicasBehind:
    """L for a schedule, kept for the next value."""
    return _begun(bounds, schedule).complete()


@functools.lru_cache(maxsize=4)
def _begun(bounds: ReplicaBounds, schedule: str) -> ReplicasBehind:
    return ReplicasBehind(bounds, schedule)
