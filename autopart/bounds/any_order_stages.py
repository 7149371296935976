"""Bounds under every order for all stages between two cuts at once.

Each stage [i, j] counts alone, as if its rank ran nothing else. Its bounds are (1)-(5) and (7)-(11)
in autopart/bounds/any_order_formulas.py with a = z, along the path in
autopart/bounds/microbatch_path.py. No partition on the layout, under any order, is faster than the
smallest possible largest bound of a stage. So `autopart.bounds.open_paths.paths_below` lists the
partitions that may be faster.
"""

import itertools

import numpy as np

from autopart.activations.shared_totals import freest_totals
from autopart.bounds.any_order_formulas import Work, any_order_path, memory_bounds, work_bounds
from autopart.bounds.microbatch_path import LayoutPaths, Mask, Matrix, always_sent, step_ends
from autopart.bounds.one_at_a_time import one_at_a_time_bounds
from autopart.cost.cuts import Cuts, allowed
from autopart.cost.in_flight import one_in_flight
from autopart.cost.made_gradients import made_gradients
from autopart.cost.memory import memory, total
from autopart.cost.memory_limits import free_bytes
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_syncs import time_after_backward
from autopart.cost.stage_times import cut_links
from autopart.cost.syncs import sync_price
from autopart.cost.tied_syncs import without_shared_ties
from autopart.records.layouts import Layout, one_replica, own_microbatches
from autopart.records.problem import Problem
from autopart.schedules.named.gems import GEMS
from autopart.stopping.time_limit import check_time


def stage_bounds_of_any_order(
    problem: Problem, layout: Layout, cuts: Cuts, *, split: bool
) -> list[Matrix]:
    """For each stage in a layout, the seconds that no order can beat with [i, j] in its place.

    Each matrix has the shape (N, N) for N cuts. It is infinite where there is no stage, where a pin
    breaks, and where one microbatch does not fit. Of schedules only GEMS has a bound of its own, for
    the step.
    `split` says whether backwards may be split.
    """
    # A send counts only where every microbatch needs it.
    links = [
        link if always_sent(here, there, layout.num_microbatches) else None
        for link, (here, there) in zip(
            cut_links(problem.cluster, layout.stage_ranks),
            itertools.pairwise(layout.stage_ranks),
            strict=True,
        )
    ]
    paths = LayoutPaths(problem, layout, cuts, links, split=split)
    bounds: list[Matrix] = []
    for stage in range(len(layout.stage_ranks)):
        check_time()
        may = allowed(cuts, problem.graph, problem.demands, stage)
        in_flight, fits = _most_in_flight(problem, layout, cuts, stage, split=split)
        seconds = _stage_bound(problem, layout, cuts, stage, paths, in_flight)
        bounds.append(np.where(may & fits, seconds, np.inf))
    return bounds


def _stage_bound(
    problem: Problem,
    layout: Layout,
    cuts: Cuts,
    stage: int,
    paths: LayoutPaths,
    in_flight: Matrix,
) -> Matrix:
    """The largest among (1)-(5) and (7)-(11) for every [i, j]."""
    split = paths.split
    totals = on_ranks(cuts.totals, problem, layout, stage)
    weights = totals.weight_grad_time if split else 0.0 * totals.backward_time

    def end(at: int) -> Matrix:
        # Syncs of tied parameters come on top and are left out.
        own, ranks = on_ranks(cuts.totals, problem, layout, at), layout.stage_ranks[at]
        own = without_shared_ties(problem, cuts, own)
        price = sync_price(problem.cluster, ranks, problem.training)
        return time_after_backward(problem, own, price, len(ranks), stage=at, split=split)

    own_end, first_end = step_ends(end, stage)
    around = paths.around(stage, totals)
    path = any_order_path(
        around,
        weights,
        (weights if stage == 0 else 0.0) + first_end,
        sends_overlap=problem.cluster.sends_overlap,
    )
    if problem.objective == "period":
        # A rank's period runs from its own first action to the end of its own update.
        own_end = own_end - path.arrival
    # Step 1: the work of the rank with the most microbatches.
    n = own_microbatches(layout, stage)
    forward, gradient = n * (path.forward + path.send), n * (path.gradient + path.send_back)
    bounds = work_bounds(path, path, Work(forward, gradient, n * path.weights, own_end))
    # Step 2: turns in limited memory, on the rank with the fewest microbatches.
    fewest = layout.num_microbatches // len(layout.stage_ranks[stage])
    if fewest:
        most = np.minimum(in_flight, fewest)
        bounds += memory_bounds(path, fewest, most, own_end, split=split)
    # Step 3: the order of GEMS lets one microbatch run at a time.
    last, of_step = len(layout.stage_ranks) - 1, problem.objective != "period"
    if layout.schedule == GEMS.name and stage == last and of_step:
        count = one_replica(layout).num_microbatches
        bounds += one_at_a_time_bounds(around, count, first_end)
    return np.maximum.reduce(np.broadcast_arrays(*bounds))


def _most_in_flight(
    problem: Problem, layout: Layout, cuts: Cuts, stage: int, *, split: bool
) -> tuple[Matrix, Mask]:
    """For every [i, j], the most microbatches whose stash fits, and whether one fits.

    State and all other memory is counted beside one microbatch in its F, when no message need
    be there, and no gradient. Behind the last backward all gradients are there. Whole backwards of two microbatches
    or more have them in the last one too, with its stash. Policies free as much stash as they can.
    """
    n, ranks = own_microbatches(layout, stage), layout.stage_ranks[stage]
    totals = freest_totals(problem, layout, cuts)
    use = memory(totals, problem, len(ranks), one_in_flight())
    free = free_bytes(problem.cluster, ranks, total(use))
    in_last = use.sends if n > 1 and not split else use.sends + use.stash + use.workspace
    behind = free + in_last - made_gradients(totals, problem.training)
    stash = totals.stash_bytes
    if split:
        stash = np.minimum(stash, totals.waiting_bytes)
    room = free + totals.stash_bytes
    in_flight = np.where(stash > 0, room // np.maximum(stash, 1), n)
    return np.maximum(in_flight, 1).astype(np.float64), (free >= 0) & (behind >= 0)
