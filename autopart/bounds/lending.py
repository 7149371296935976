"""Lower bounds on the step under BPipe, whose ranks lend stash to each other.

Its actions are 1F1B's in the same order. Moves of stash only delay them. So (1)-(5) of 1F1B
(autopart/bounds/classic_schedules.py) hold, with all microbatches in flight that 1F1B has, however
much memory they take. What must fit is less: the stash that a rank's own order keeps on it.

A move takes t seconds beside its action, and the next action waits for it. So an action of a seconds
with a move beside it occupies its rank for max(t, a) seconds. A rank that lends x microbatches has x
moves beside forwards and x beside backwards:

    step >= F + s o + m (f + b) + x (max(0, t - f) + max(0, t - b)) + B + s o                       (28)

Sends of one microbatch ahead of the stage come on top.
"""

import msgspec
import numpy as np
from msgspec import UnsetType

from autopart.activations.shared_totals import freest_totals
from autopart.bounds.classic_schedules import stage_bounds
from autopart.bounds.microbatch_path import LayoutPaths, Matrix
from autopart.cost.cuts import Cuts
from autopart.cost.lending import lend_times, microbatches_lent
from autopart.cost.memory_limits import fits_on_ranks
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_times import cut_links
from autopart.records.cluster import without_memory_limit
from autopart.records.layouts import Layout, own_microbatches
from autopart.records.problem import Problem
from autopart.schedules.named.one_f_one_b import ONE_F_ONE_B


def lending_bounds(problem: Problem, layout: Layout, cuts: Cuts) -> list[Matrix]:
    """For each stage, the larger of 1F1B's (1)-(5) and (28) in seconds with [i, j] in its place.

    Infinite where there is no stage, where a pin breaks, and where the stage does not fit into
    memory beside nothing that other ranks lend.
    """
    classic = stage_bounds(
        _roomy(problem), msgspec.structs.replace(layout, schedule=ONE_F_ONE_B.name), cuts
    )
    freest = freest_totals(problem, layout, cuts)
    paths = LayoutPaths(problem, layout, cuts, cut_links(problem.cluster, layout.stage_ranks))
    stash = [freest.stash_bytes] * len(layout.stage_ranks)
    times = lend_times(problem.cluster, layout, stash)
    return [
        np.where(
            fits_on_ranks(freest, problem, layout, stage),
            bound
            if isinstance(seconds, UnsetType)
            else np.maximum(bound, _beside_moves(problem, layout, paths, stage, seconds)),
            np.inf,
        )
        for stage, (bound, seconds) in enumerate(zip(classic, times, strict=True))
    ]


def _beside_moves(
    problem: Problem, layout: Layout, paths: LayoutPaths, stage: int, seconds: Matrix
) -> Matrix:
    """(28) where one move takes so many seconds."""
    path = paths.around(stage, on_ranks(paths.cuts.totals, problem, layout, stage))
    forward, backward = path.forward, path.backward
    later = np.maximum(0.0, seconds - forward) + np.maximum(0.0, seconds - backward)
    work = own_microbatches(layout, stage) * (forward + backward)
    around = path.fill(sends_overlap=True) + path.drain(sends_overlap=True)
    return around + work + microbatches_lent(layout)[stage] * later


def _roomy(problem: Problem) -> Problem:
    """The problem on GPUs that hold everything."""
    return msgspec.structs.replace(problem, cluster=without_memory_limit(problem.cluster))
