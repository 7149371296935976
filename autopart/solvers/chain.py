"""Exact dynamic program over the cuts of a layer graph.

Symbols   N        cuts, D_i the layers ahead of cut i (autopart/cuts.py); n + 1 of them on a chain
          c_s[i,j] the cost of D_j - D_i as stage s (from 0), infinite where D_i is not inside D_j
                   or the stage does not fit
          k        stages

D(s, j) is the smallest possible largest cost of the first s stages when they hold the layers D_j:

    D(0, 0) = 0
    D(s, j) = min { max( D(s - 1, i), c_{s-1}[i, j] ) :  D_i inside D_j }

It is exact because max is monotone: the best first s - 1 stages never hurt the last one. The stage
index is in the state, so a cost may depend on the stage's place: its links, its microbatches in
flight, the stages that must have run before it. O(N² k) time, O(N²) memory.

The costs tried for a layout (m microbatches that a rank of the stage runs, f[i] and b[i] the forward
and backward of the layers D_i):

    period    m * (busy + a share of the stage's sends)    the steady state
    finish    f[i] + b[i] + period                         fill, steady state and drain of stage s

A send that overlaps compute still takes part of the period of the cycle through two neighbours; how
large a part depends on the schedule, so the shares 0, 1/2 and 1 are tried and the simulator decides.
Derivation: docs/solvers.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cost import (
    busy_time,
    cut_links,
    fits_on_ranks,
    holding_of,
    links_around,
    memory,
    on_ranks,
    total,
    traffic_times,
)
from autopart.cuts import Cuts, allowed
from autopart.layouts import Layout, own_microbatches
from autopart.problem import Problem
from autopart.stage_load import Number
from autopart.treated import least_loads, treated

SEND_SHARES = (0.0, 0.5, 1.0)


class Path(NamedTuple):
    """The best path over the cuts, and the largest cost of its stages."""

    largest: float
    path: tuple[int, ...]
    """The cuts between the stages, the first and the last cut among them."""


def solve(problem: Problem, layout: Layout, cuts: Cuts) -> list[tuple[int, ...]]:
    """The paths that are best for each cost above, each once; none where nothing fits."""
    loads = cuts.loads
    fits = [
        fits_on_ranks(treated(problem, layout, cuts, stage), problem, layout, stage)
        & allowed(cuts, problem.graph, problem.demands, stage)
        for stage in range(len(layout.stage_ranks))
    ]
    found: dict[tuple[int, ...], None] = {}
    for share in SEND_SHARES:
        periods = _periods(problem, layout, cuts, share)
        before = loads.forward_time[0] + loads.backward_time[0]
        finishes = [before[:, None] + period for period in periods]
        for costs in (periods, finishes):
            within = [np.where(fit, cost, np.inf) for fit, cost in zip(fits, costs, strict=True)]
            best = best_path(within, cuts.nested)
            if best is None:
                return []
            found[best.path] = None
    return list(found)


def least_memory(problem: Problem, layout: Layout, cuts: Cuts) -> tuple[int, ...] | None:
    """The path whose largest stage needs the fewest bytes; None where the user's pins allow none."""
    costs: list[Number] = []
    for stage in range(len(layout.stage_ranks)):
        loads, held = least_loads(problem, layout, cuts, stage), holding_of(layout, stage)
        needed = total(memory(loads, problem, len(layout.stage_ranks[stage]), held))
        may = allowed(cuts, problem.graph, problem.demands, stage)
        costs.append(np.where(may, needed, np.inf))
    best = best_path(costs, cuts.nested)
    return None if best is None else best.path


def best_path(costs: Sequence[Number], nested: Number) -> Path | None:
    """Go from the first cut to the last in len(costs) stages whose largest costs[s][i, j] is smallest.

    Each costs[s] has the shape (N, N) of `nested`, which says where there is a stage at all. None
    where every way has an infinite cost.
    """
    size = nested.shape[0]
    best = np.full(size, np.inf)
    best[0] = 0.0
    choices: list[Number] = []
    for cost in costs:
        reached = np.where(nested, np.maximum(best[:, None], cost), np.inf)
        choices.append(reached.argmin(axis=0))
        best = reached.min(axis=0)
    if not np.isfinite(best[-1]):
        return None
    path = [size - 1]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return Path(float(best[-1]), tuple(reversed(path)))


def _periods(problem: Problem, layout: Layout, cuts: Cuts, share: float) -> list[Number]:
    links = cut_links(problem.cluster, layout.stage_ranks)
    periods: list[Number] = []
    for stage in range(len(layout.stage_ranks)):
        before, after = links_around(links, stage)
        load = on_ranks(treated(problem, layout, cuts, stage), problem, layout, stage)
        period = busy_time(load, problem.cluster, before, after)
        if problem.cluster.sends_overlap:
            sends = sum(traffic_times(load.sent, after)) + sum(traffic_times(load.received, before))
            period = period + share * sends
        periods.append(own_microbatches(layout, stage) * period)
    return periods
