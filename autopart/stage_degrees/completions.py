"""Lower bounds on the rest of a plan whose stages have tensor degrees of their own.

Symbols   b(t, n)[i, j]   the bound of a stage (autopart/stage_degrees/bounds.py)
          V(n, g)         seconds that no n + 1 stages from cut i to the last one on g GPUs of each
                          replica can beat, shape (N,) for N cuts

          W(n, g)         the fewest seconds of one microbatch on these stages and over the cuts between

    V(n, g)[i] = min over t and j of max(b(t, n)[i, j], V(n - 1, g - t)[j])
    W(n, g)[i] = min over t and j of F + B of [i, j] + sends over cut j + W(n - 1, g - t)[j]

So V(n, G / R) at the first cut bounds all plans with n + 1 stages and R replicas, on any GPUs. W there
and e of any of their stages do so too.
"""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from autopart.stage_degrees.bounds import DegreeBounds
from autopart.stopping.time_limit import check_time

Rows = npt.NDArray[np.float64]
"""Floats for so many GPUs of each replica and each cut, shape (GPUs + 1, N)."""


class Completions:
    """V and W for one schedule and number of replicas, up to the most stages."""

    def __init__(
        self, bounds: DegreeBounds, schedule: str, replicas: int, *, eased: bool = False
    ) -> None:
        self.bounds, self.schedule, self.replicas, self.eased = bounds, schedule, replicas, eased
        problem, most_stages = bounds.problem, bounds.most_stages(replicas)
        self.room = bounds.gpus // replicas
        """GPUs for each replica."""
        # More GPUs than the largest groups for all stages gain nothing.
        self.room = min(self.room, most_stages * problem.degrees[-1])
        self.values: list[Rows] = []
        """V(n, g) at [n][g, i], shape (room + 1, N) for each n."""
        self.trips: list[Rows] = []
        """W(n, g) in the same way."""
        for behind in range(most_stages):
            found = self._with_stage(behind)
            self.values.append(found[0])
            self.trips.append(found[1])

    def _with_stage(self, behind: int) -> tuple[Rows, Rows]:
        bounds = self.bounds
        shape = (self.room + 1, len(bounds.cuts[0].nested))
        found, trips = np.full(shape, np.inf), np.full(shape, np.inf)
        for degree in bounds.problem.degrees:
            check_time()
            if degree > self.room:
                continue
            own = bounds.stage(self.schedule, self.replicas, degree, behind, eased=self.eased)
            if behind == 0:
                best, trip = own.bound[None, :, -1], own.trip[None, :, -1]
            else:
                room = self.room + 1 - degree
                best = _for_each(
                    self.values[-1][:room], lambda row, own=own: np.maximum(own.bound, row)
                )
                trip = _for_each(
                    self.trips[-1][:room] + bounds.sends, lambda row, own=own: own.trip + row
                )
            found[degree:] = np.minimum(found[degree:], best)
            trips[degree:] = np.minimum(trips[degree:], trip)
        return found, trips

    @property
    def counts(self) -> list[int]:
        """The numbers of stages that the problem allows, from 2 on."""
        demanded = self.bounds.problem.of_gpus.demands.num_stages
        return [k for k in range(2, len(self.values) + 1) if demanded in (None, k)]

    def least(self, stages: int) -> float:
        """Seconds that no plan with so many stages can beat."""
        at = stages - 1
        return float(max(self.values[at][self.room, 0], self.trips[at][self.room, 0]))


def _for_each(rows: Rows, along: Callable[[Rows], Rows]) -> Rows:
    """For each row, which has what follows cut j, the smallest entry at each cut i; equal rows count once."""
    different, which = np.unique(rows, axis=0, return_inverse=True)
    best = np.array([along(row[None, :]).min(axis=1) for row in different])
    return best[which.reshape(-1)]


class AllCompletions:
    """The completions of a problem, kept for each schedule and number of replicas."""

    def __init__(self, bounds: DegreeBounds) -> None:
        self.bounds = bounds
        self._kept: dict[tuple[str, int], Completions] = {}

    @functools.cached_property
    def eased(self) -> list[tuple[float, str, int]]:
        """The eased bound of each schedule and number of replicas that the problem allows, smallest first."""
        bounds, whole = self.bounds, self.bounds.problem.of_gpus
        found: list[tuple[float, str, int]] = []
        for replicas in range(1, min(bounds.gpus // 2, whole.num_microbatches) + 1):
            if whole.num_microbatches % replicas or bounds.most_stages(replicas) < 2:
                continue
            if whole.demands.num_replicas not in (None, replicas):
                continue
            for schedule in whole.demands.schedules:
                rest = Completions(bounds, schedule, replicas, eased=True)
                if rest.counts:
                    found.append((min(map(rest.least, rest.counts)), schedule, replicas))
        return sorted(found)

    def of(self, schedule: str, replicas: int) -> Completions:
        """V for a schedule and a number of replicas, which is kept."""
        key = schedule, replicas
        if key not in self._kept:
            self._kept[key] = Completions(self.bounds, schedule, replicas)
        return self._kept[key]
