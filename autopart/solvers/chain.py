"""Exact dynamic program over the cuts of the graph's order.

Symbols   n        layers, cut only between neighbours in the graph's topological order
          c_s[i,j] the cost of layers i … j - 1 as stage s (from 0), infinite where they do not fit
          k        stages

D(s, j) is the smallest possible largest cost of the first s stages when they hold layers 0 … j - 1:

    D(0, 0) = 0
    D(s, j) = min { max( D(s - 1, i), c_{s-1}[i, j] ) :  i < j }

It is exact because max is monotone: the best first s - 1 stages never hurt the last one. The stage
index is in the state, so a cost may depend on the stage's place: its links, its microbatches in
flight, the stages that must have run before it. O(n² k) time, O(n²) memory.

The costs tried for a layout (m microbatches a rank, f[i] and b[i] the forward and backward of the
layers before i):

    period    busy + a share of the stage's sends          the steady state
    finish    f[i] + b[i] + m * period                     fill, steady state and drain of stage s

A send that overlaps compute still takes part of the period of the cycle through two neighbours; how
large a part depends on the schedule, so the shares 0, 1/2 and 1 are tried and the simulator decides.
Derivation: docs/solvers.md.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cost import (
    Number,
    Partition,
    StageLoad,
    busy_time,
    cut_links,
    in_flight,
    links_around,
    memory,
    total,
    traffic_times,
)
from autopart.problem import Layout, Problem

SEND_SHARES = (0.0, 0.5, 1.0)


class Cut(NamedTuple):
    """An optimal cut: the largest cost of a stage, and the stages."""

    largest: float
    partition: Partition


def solve(problem: Problem, layout: Layout, loads: StageLoad) -> list[Partition]:
    """The partitions that are best for each cost above, each once; none where nothing fits."""
    fits = [total(use) <= problem.cluster.memory_bytes for use in _memories(problem, layout, loads)]
    found: dict[Partition, None] = {}
    for share in SEND_SHARES:
        periods = _periods(problem, layout, loads, share)
        before = loads.forward_time[0] + loads.backward_time[0]
        finishes = [before[:, None] + layout.microbatches * period for period in periods]
        for costs in (periods, finishes):
            within = [np.where(fit, cost, np.inf) for fit, cost in zip(fits, costs, strict=True)]
            cut = cut_chain(within)
            if cut is None:
                return []
            found[cut.partition] = None
    return list(found)


def least_memory(problem: Problem, layout: Layout, loads: StageLoad) -> int:
    """The smallest memory of a GPU, in bytes, with which some cut of the layout fits."""
    costs = [total(use).astype(float) for use in _memories(problem, layout, loads)]
    cut = cut_chain(costs)
    assert cut is not None, "every cost is finite"
    return int(cut.largest)


def cut_chain(costs: Sequence[Number]) -> Cut | None:
    """Cut a chain into len(costs) stages so that the largest costs[s][i, j] is smallest.

    Each costs[s] has shape (n + 1, n + 1); only entries i < j are read. None where every cut has an
    infinite cost.
    """
    size = costs[0].shape[0]
    ahead = np.arange(size)[:, None] < np.arange(size)[None, :]
    best = np.full(size, np.inf)
    best[0] = 0.0
    choices: list[Number] = []
    for cost in costs:
        reached = np.where(ahead, np.maximum(best[:, None], cost), np.inf)
        choices.append(reached.argmin(axis=0))
        best = reached.min(axis=0)
    if not np.isfinite(best[-1]):
        return None
    ends = [size - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    ends.reverse()
    partition = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))
    return Cut(float(best[-1]), partition)


def _memories(problem: Problem, layout: Layout, loads: StageLoad) -> list[Number]:
    stages = len(layout.stage_ranks)
    return [
        memory(
            loads,
            problem,
            layout.microbatches,
            in_flight(layout.schedule, stages, stage, layout.microbatches),
        )
        for stage in range(stages)
    ]


def _periods(problem: Problem, layout: Layout, loads: StageLoad, share: float) -> list[Number]:
    links = cut_links(problem.cluster, layout.stage_ranks)
    periods: list[Number] = []
    for stage in range(len(layout.stage_ranks)):
        before, after = links_around(links, stage)
        period = busy_time(loads, problem.cluster, before, after)
        if problem.cluster.sends_overlap:
            sends = sum(traffic_times(loads.sent, after)) + sum(
                traffic_times(loads.received, before)
            )
            period = period + share * sends
        periods.append(period)
    return periods
