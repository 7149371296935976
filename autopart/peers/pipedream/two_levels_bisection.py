"""Plans on two levels by bisection over searches that need no matrices (two_levels_search.py).

A stage on several nodes is found with a lower bound on its time. Its best pipeline then gives the
real time. Where the real time breaks the limit, the bisection ends and claims no more.
"""

import math
from collections.abc import Sequence

import numpy as np

from autopart.peers.pipedream.charge_arrays import least_outer_costs, level_costs, within_node
from autopart.peers.pipedream.charges import busy_time
from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.peers.pipedream.downsets import Downsets, downsets_between, nesting
from autopart.peers.pipedream.incumbent import Best, StageEnd, Task
from autopart.peers.pipedream.pair_seconds import PairSeconds
from autopart.peers.pipedream.two_levels_search import OuterStage, TwoLevelSearch
from autopart.solvers.fewest_ranks import (
    TOLERANCE,
    BestStages,
    DownsetStage,
    Flags,
    bottleneck,
    fewest_ranks,
    tighten,
)


def by_bisection(task: Task, best: Best, downsets: Downsets) -> Best:
    """The better plan: `best`, or one that is found without looking at all pairs, with its bound."""
    search = _CheckedSearch(task, downsets)
    known: BestStages[OuterStage] = BestStages(best.value, best.bound, ())
    found = tighten(search, search.value, known, best.bound, best.value, task.deadline)
    assert found is not None, "it started from a plan"
    if not found.stages:
        return best._replace(bound=found.lower_bound)
    machines = search.level.machines
    pipelines = tuple(
        tuple(StageEnd(downsets.masks[s.end], machines[s.choice]) for s in search.pipeline(stage))
        for stage in found.stages
    )
    cuts = tuple(StageEnd(downsets.masks[stage.end], stage.nodes) for stage in found.stages)
    return Best(found.bottleneck, found.lower_bound, cuts, pipelines)


class _CheckedSearch:
    """Searches for stages on both levels, and the real seconds of the stages found."""

    def __init__(self, task: Task, downsets: Downsets) -> None:
        sums = task.sums(downsets)
        self.task, self.sums = task, sums
        self.nested = nesting(downsets)
        self.level = level_costs(sums, task.network, all_sends=task.all_sends)
        self.outer = least_outer_costs(sums, task.network, all_sends=task.all_sends)
        self.search = TwoLevelSearch(self.level, self.outer, self.nested, task.network.machines)
        self.limit = math.inf
        self.pipelines: dict[tuple[int, int], tuple[DownsetStage, ...]] = {}

    def __call__(self, limit: float) -> tuple[OuterStage, ...] | None:
        """Stages that may keep within `limit` seconds; None where there are none."""
        self.limit = limit
        return self.search(limit)

    def value(self, stages: Sequence[OuterStage]) -> float | None:
        """Seconds for the plan; None where stages on several nodes break the limit after all."""
        seconds = [self._seconds(stage) for stage in stages]
        if max(seconds) > self.limit * (1 + TOLERANCE):
            return None
        return max(seconds)

    def pipeline(self, stage: OuterStage) -> tuple[DownsetStage, ...]:
        """An outer stage's pipeline within each of its nodes."""
        if stage.inner:
            return stage.inner
        ends = stage.start, stage.end
        if ends not in self.pipelines:
            self.pipelines[ends] = _best_pipeline(self.task, self.level, self.nested, *ends)
        return self.pipelines[ends]

    def _seconds(self, stage: OuterStage) -> float:
        """Formula (4) for one outer stage, with its real pipeline."""
        network = self.task.network
        start, end = stage.start, stage.end
        option = self.outer.choices[stage.nodes - 1]
        parameters = self.sums.parameters[end] - self.sums.parameters[start]
        compute = _pipeline_seconds(self.level, self.pipeline(stage))
        sharing = 1 if start else network.machines[0]
        busy = busy_time(compute, parameters, stage.nodes, network.bandwidths[1], sharing)
        if start:
            return float(max(busy, option.receive[start], option.send[end]))
        return float(max(busy, option.first_send[end]))


def _pipeline_seconds(level: DownsetCosts, stages: Sequence[DownsetStage]) -> float:
    """The bottleneck of a pipeline within a node."""
    first, *rest = stages
    choice = level.choices[first.choice]
    busy = float(choice.first[first.end] - choice.first[first.start])
    if not rest:
        return busy
    return max(busy, float(choice.first_send[first.end]), bottleneck(level.seconds_of, rest))


def _best_pipeline(
    task: Task, level: DownsetCosts, nested: Flags, start: int, end: int
) -> tuple[DownsetStage, ...]:
    """The pipeline with the smallest bottleneck between two downsets, on one node."""
    downsets = downsets_between(nested, start, end)
    costs = within_node(level, downsets)
    seconds = PairSeconds(costs, nested[np.ix_(downsets, downsets)])
    machines = task.network.machines[0]
    whole = float(costs.work[-1])
    found = tighten(
        lambda limit: fewest_ranks(seconds, limit, machines),
        lambda stages: bottleneck(costs.seconds_of, stages),
        None,
        whole / machines,
        whole,
    )
    assert found is not None, "one stage on one machine is a pipeline"
    return tuple(DownsetStage(downsets[s.start], downsets[s.end], s.choice) for s in found.stages)
