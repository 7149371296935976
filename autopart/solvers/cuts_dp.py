"""The exact dynamic program over the cuts of a layer graph.

Symbols   N        cuts: n + 1 on a chain of n layers;  D_i  the layers before cut i (autopart/cost/cuts.py)
          c_s[i,j] the cost of D_j - D_i as stage s (from 0); infinite where D_i is not inside D_j
                   or the stage does not fit
          k        stages

D(s, j) is the smallest possible largest cost of the first s stages if they have the layers D_j:

    D(0, 0) = 0
    D(s, j) = min { max( D(s - 1, i), c_{s-1}[i, j] ) :  D_i inside D_j }

It is exact because max is monotone: better first s - 1 stages never make the last one worse. The state has the stage
index, so a cost may depend on the stage's place: its links and its microbatches in flight. O(N² k) seconds, O(N²) bytes.

Two costs are tried for a layout. m is the number of microbatches per rank of the stage. f[i] and b[i] are the forward
and backward seconds of the layers D_i:

    period    m * (busy + share * sends of the stage)      between fill and drain
    finish    f[i] + b[i] + period                         fill, period and drain of stage s

A send that overlaps compute still takes a share of the period of the cycle through two neighbours. The share depends on
the schedule, so 0, 1/2 and 1 are tried and the simulator decides. Derivation: docs/solvers.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.activations.policies import chooses_by_rank
from autopart.activations.shared_totals import leanest_totals, likely_totals
from autopart.cost.cuts import Cuts, allowed
from autopart.cost.in_flight import stage_in_flight
from autopart.cost.memory import memory, total
from autopart.cost.memory_limits import fits_on_ranks
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_times import busy_time, cut_links, links_around, traffic_times
from autopart.cost.stage_totals import Array
from autopart.records.cluster import host_share
from autopart.records.layouts import Layout, own_microbatches
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time

SEND_SHARES = (0.0, 0.5, 1.0)


class Path(NamedTuple):
    """The best path over the cuts, and its stages' largest cost."""

    largest: float
    path: tuple[int, ...]
    """The cuts between the stages, with the graph's first and last cut."""


def solve(problem: Problem, layout: Layout, cuts: Cuts) -> list[tuple[int, ...]]:
    """The best path for each cost in the module's docstring, each path once; empty where nothing
    fits."""
    totals = cuts.totals
    fits = [
        fits_on_ranks(likely_totals(problem, layout, cuts, stage), problem, layout, stage)
        & allowed(cuts, problem.graph, problem.demands, stage)
        for stage in range(len(layout.stage_ranks))
    ]
    found: dict[tuple[int, ...], None] = {}
    for share in SEND_SHARES:
        periods = _periods(problem, layout, cuts, share)
        before = totals.forward_time[0] + totals.backward_time[0]
        finishes = [before[:, None] + period for period in periods]
        for costs in (periods, finishes):
            within = [np.where(fit, cost, np.inf) for fit, cost in zip(fits, costs, strict=True)]
            best = best_path(within, cuts.nested)
            if best is None:
                return []
            found[best.path] = None
    return list(found)


def least_memory(problem: Problem, layout: Layout, cuts: Cuts) -> Path | None:
    """The path whose largest stage needs the fewest bytes on the device, and these bytes.

    None where pins and groups, or the limit on host memory, allow no path. Where the stages of a rank choose their policies
    together, the bytes are those that no policies need less than, and host memory has no limit.
    """
    costs: list[Array] = []
    for stage in range(len(layout.stage_ranks)):
        check_time()
        totals, in_flight = (
            leanest_totals(problem, layout, cuts, stage),
            stage_in_flight(layout, stage),
        )
        use = memory(totals, problem, len(layout.stage_ranks[stage]), in_flight)
        may = allowed(cuts, problem.graph, problem.demands, stage)
        share = host_share(problem.cluster)
        if share is not None and not chooses_by_rank(problem, layout):
            may = may & (use.host <= share)
        costs.append(np.where(may, total(use), np.inf))
    return best_path(costs, cuts.nested)


def best_path(costs: Sequence[Array], nested: Array) -> Path | None:
    """The path from the first cut to the last in len(costs) stages with the smallest largest costs[s][i, j].

    Each costs[s] has shape (N, N), as has `nested`, which is true where [i, j] is a stage. None where every path has an
    infinite cost.
    """
    size = nested.shape[0]
    best = np.full(size, np.inf)
    best[0] = 0.0
    # Step s of the recurrence: D(s + 1, j) in `best`, and the i that reaches it in `choices`.
    choices: list[Array] = []
    for cost in costs:
        check_time()
        reached = np.where(nested, np.maximum(best[:, None], cost), np.inf)
        choices.append(reached.argmin(axis=0))
        best = reached.min(axis=0)
    if not np.isfinite(best[-1]):
        return None
    # Follow the choices back from the last cut.
    path = [size - 1]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return Path(float(best[-1]), tuple(reversed(path)))


def _periods(problem: Problem, layout: Layout, cuts: Cuts, share: float) -> list[Array]:
    links = cut_links(problem.cluster, layout.stage_ranks)
    periods: list[Array] = []
    for stage in range(len(layout.stage_ranks)):
        check_time()
        before, after = links_around(links, stage)
        totals = on_ranks(likely_totals(problem, layout, cuts, stage), problem, layout, stage)
        period = busy_time(totals, problem.cluster, before, after)
        if problem.cluster.sends_overlap:
            sends = sum(traffic_times(totals.sent, after)) + sum(
                traffic_times(totals.received, before)
            )
            period = period + share * sends
        periods.append(own_microbatches(layout, stage) * period)
    return periods
