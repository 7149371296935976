"""The loads of all stages between two cuts with their best choice of recomputed layers.

What is best for a stage depends on the bytes that are left beside its state, so on its place and layout:
of the choices that fit, the one with the fewest extra seconds. No other choice of the same stage makes any
step faster: extra seconds only lengthen the stage's backward, and no action of an order starts
earlier where another takes longer. Where nothing fits, the choice with the fewest bytes says how much is missing.
"""

import numpy as np

from autopart.cluster import smallest_memory
from autopart.cost import in_flight, memory, total
from autopart.cuts import Cuts
from autopart.frontier import can_recompute, leaves_choice
from autopart.layouts import Layout
from autopart.problem import Problem
from autopart.stage_load import StageLoad
from autopart.stage_points import StagePoints, best_points, stage_points

KEPT_ENTRIES = 20_000_000
"""Entries of the matrices that are kept for another layout, three for each: half a gigabyte."""


def treated(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageLoad:
    """`cuts.loads` as stage `stage` of a layout, with the layers recomputed that are best there."""
    if not can_recompute(layout.schedule):
        return cuts.loads
    return treated_loads(
        problem,
        cuts,
        len(layout.stage_ranks[stage]),
        in_flight(layout, stage),
        smallest_memory(problem.cluster, layout.stage_ranks[stage]),
    )


def least_loads(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageLoad:
    """`cuts.loads` as stage `stage` of a layout, with the layers recomputed that leave the fewest bytes."""
    if not can_recompute(layout.schedule):
        return cuts.loads
    return treated_loads(problem, cuts, len(layout.stage_ranks[stage]), in_flight(layout, stage), 0)


def treated_loads(problem: Problem, cuts: Cuts, replicas: int, held: int, limit: int) -> StageLoad:
    """`cuts.loads` with what is best for each of so many replicas, with `held` microbatches in flight in
    `limit` bytes."""
    demands, loads = problem.demands, cuts.loads
    if not leaves_choice(demands):
        return loads
    asked = (demands.recompute, demands.recompute_layers, demands.keep_layers)
    state = (problem.training, problem.cluster.reserve_bytes, problem.num_microbatches)
    key = (asked, state, replicas, held, limit)
    if key in cuts.made:
        return cuts.made[key]
    kept = total(memory(loads, problem, replicas, held))
    may_keep = demands.recompute == "auto" and not demands.recompute_layers
    if may_keep and (kept[cuts.nested] <= limit).all():
        return loads
    points: StagePoints | None = cuts.made.get(asked)
    if points is None:
        points = stage_points(problem.graph, demands, cuts.ahead, cuts.nested)
        cuts.made[asked] = points
    best = best_points(points, kept, loads.workspace_bytes, held, limit)
    if len(cuts.made) * kept.size > KEPT_ENTRIES:
        cuts.made.clear()
        cuts.made[asked] = points
    cuts.made[key] = loads._replace(
        backward_time=loads.backward_time + best.extra_time,
        stash_bytes=loads.stash_bytes - best.freed_bytes,
        inner_stash_bytes=np.minimum(loads.inner_stash_bytes, loads.stash_bytes - best.freed_bytes),
        workspace_bytes=best.workspace_bytes,
    )
    return cuts.made[key]
