"""Lower bounds on the rest of a plan whose stages have tensor degrees of their own.

Symbols   b(t, n)[i, j]   the bound of a stage (autopart/stage_degrees/bounds.py)
          V(n, g)         seconds that no n + 1 stages from cut i to the last one on g GPUs of each
                          replica can beat, shape (N,) for N cuts

    V(n, g)[i] = min over t and j of max(b(t, n)[i, j], V(n - 1, g - t)[j])

So V(n, G / R) at the first cut bounds all plans with n + 1 stages and R replicas, on any GPUs.
"""

import functools

import numpy as np
import numpy.typing as npt

from autopart.stage_degrees.bounds import DegreeBounds
from autopart.stopping.time_limit import check_time


class Completions:
    """V for one schedule and number of replicas, up to the most stages."""

    def __init__(
        self, bounds: DegreeBounds, schedule: str, replicas: int, *, eased: bool = False
    ) -> None:
        self.bounds, self.schedule, self.replicas, self.eased = bounds, schedule, replicas, eased
        problem, most_stages = bounds.problem, bounds.most_stages(replicas)
        self.room = bounds.gpus // replicas
        """GPUs for each replica."""
        # More GPUs than the largest groups for all stages gain nothing.
        self.room = min(self.room, most_stages * problem.degrees[-1])
        self.values: list[npt.NDArray[np.float64]] = []
        """V(n, g) at [n][g, i], shape (room + 1, N) for each n."""
        for behind in range(most_stages):
            check_time()
            self.values.append(self._with_stage(behind))

    def _with_stage(self, behind: int) -> npt.NDArray[np.float64]:
        bounds = self.bounds
        found = np.full((self.room + 1, len(bounds.cuts[0].nested)), np.inf)
        for degree in bounds.problem.degrees:
            if degree > self.room:
                continue
            own = bounds.stage(self.schedule, self.replicas, degree, behind, eased=self.eased)
            if behind == 0:
                found[degree:] = np.minimum(found[degree:], own[:, -1])
                continue
            # Many rooms have the same values behind.
            rest, which = np.unique(
                self.values[-1][: self.room + 1 - degree], axis=0, return_inverse=True
            )
            best = np.array([np.maximum(own, row[None, :]).min(axis=1) for row in rest])
            found[degree:] = np.minimum(found[degree:], best[which.reshape(-1)])
        return found

    @property
    def counts(self) -> list[int]:
        """The numbers of stages that the problem allows, from 2 on."""
        demanded = self.bounds.problem.of_gpus.demands.num_stages
        return [k for k in range(2, len(self.values) + 1) if demanded in (None, k)]

    def least(self, stages: int) -> float:
        """Seconds that no plan with so many stages can beat."""
        return float(self.values[stages - 1][self.room, 0])


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
