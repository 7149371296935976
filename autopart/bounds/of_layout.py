"""Lower bounds on the step for layouts, whatever their schedules.

GPipe and 1F1B have the closed forms in autopart/bounds/classic_schedules.py, and BPipe those of 1F1B
(autopart/bounds/lending.py). Every other schedule,
and a plan's own orders, have bounds that hold under every order
(autopart/bounds/any_order_stages.py). There each stage bounds its rank as if the rank ran nothing
else. Where ranks have several stages, all work shared out says more. So does one microbatch's path
(autopart/bounds/any_order_shapes.py).
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.activations.shared_totals import freest_totals
from autopart.bounds.any_order_shapes import any_order_shape_bound
from autopart.bounds.any_order_stages import stage_bounds_of_any_order
from autopart.bounds.classic_schedules import stage_bounds
from autopart.bounds.lending import lending_bounds
from autopart.bounds.memory_prices import memory_priced_bound
from autopart.bounds.microbatch_path import Matrix
from autopart.bounds.open_paths import paths_below
from autopart.bounds.pair_savings import MAY_PAIR, cuts_without_savings, without_savings
from autopart.bounds.rank_loads import RankLoads
from autopart.cost.cuts import Cuts
from autopart.cost.memory_limits import fits_on_ranks
from autopart.records.layer_graph import has_pair_times
from autopart.records.layouts import Layout, pipelines_together, replicas_alike
from autopart.records.problem import CLASSIC, CUSTOM, LENDING, Problem, splits_backward


class LayoutBounds(NamedTuple):
    """Seconds that no partition on a layout can beat."""

    stages: list[Matrix]
    """For each stage the bound on every [i, j] in its place, shape (N, N) for N cuts.

    Infinite where there is no stage, where a pin breaks, and where the stage does not fit into
    memory.
    """
    whole: float = 0.0
    """The bound for every partition."""
    loads: RankLoads | None = None
    """All stages of each rank together."""

    def paths_below(self, seconds: float) -> Iterator[tuple[int, ...]]:
        """Every path over the cuts that these bounds leave open below `seconds`."""
        if self.whole >= seconds:
            return iter(())
        below = paths_below(self.stages, seconds)
        first = next(below, None)
        if first is None or self.refutes(seconds):
            return iter(())
        return itertools.chain([first], below)

    def refutes(self, seconds: float) -> bool:
        """Whether all stages of each rank together leave no partition below `seconds`."""
        return self.loads is not None and self.loads.refutes(seconds, self.stages)


def layout_bounds(problem: Problem, layout: Layout, cuts: Cuts) -> LayoutBounds:
    """The bounds for a layout, whatever its schedule."""
    if layout.schedule in MAY_PAIR and has_pair_times(problem.graph):
        problem, cuts = without_savings(problem), cuts_without_savings(cuts)
    if layout.schedule in CLASSIC:
        return LayoutBounds(stage_bounds(problem, layout, cuts))
    if layout.schedule in LENDING:
        return LayoutBounds(lending_bounds(problem, layout, cuts))
    split = splits_backward(layout.schedule)
    stages = stage_bounds_of_any_order(problem, layout, cuts, split=split)
    # Stages s and k - 1 - s of two pipelines in opposite directions have the same ranks: one group.
    ranks = len({frozenset(own) for own in layout.stage_ranks})
    shape = (ranks, len(layout.stage_ranks[0]))
    whole = any_order_shape_bound(problem, shape, split=split)
    if layout.schedule != CUSTOM:
        # The bounds ask for one microbatch in its F. A named schedule keeps at least as much in flight.
        freest = freest_totals(problem, layout, cuts)
        hosts = msgspec.structs.replace(problem.cluster, host_memory_bytes=None)
        roomy = msgspec.structs.replace(problem, cluster=hosts)
        if problem.objective != "period":
            whole = max(whole, memory_priced_bound(problem, layout, cuts))
        stages = [
            np.where(fits_on_ranks(freest, roomy, layout, stage), bound, np.inf)
            for stage, bound in enumerate(stages)
        ]
    loads = None
    together = layout.schedule == CUSTOM or pipelines_together(layout.schedule) > 1
    if together and ranks > 1 and replicas_alike(layout) and problem.objective != "period":
        loads = RankLoads(problem, layout, cuts, split=split)
    return LayoutBounds(stages, whole, loads)


def is_needed(problem: Problem, layout: Layout) -> bool:
    """Whether a problem's lower bound rests on the bounds for a layout.

    Where a plan may have its own orders, their bounds hold for named schedules on the same
    placement too, whatever is recomputed or offloaded.
    """
    return CUSTOM not in problem.demands.schedules or layout.schedule == CUSTOM
