"""Lower bounds on the step under GPipe and 1F1B, in closed forms.

Symbols   k stages, r replicas on stage s (from 0); m microbatches on its first rank, no fewer than
on its
          other ranks; o the fixed cost per action
          f, b      forward and backward seconds of stage s, with o
          F, B      forward and backward seconds of all layers before the stage
          T         forward and backward of the whole model, and every stage's o
          y         in flight: microbatches past F and before B on the stage
          S         one microbatch's sends, there and back: the stage's own two cuts exactly,
                    the other cuts at their cheapest

Each bound follows one chain, in which each action must wait for the one before. Stage s between
cuts i and j:

    fill, all its work, drain or sync   F + s o + m (f + b) + max(B + s o, sync + update)        (1)
    one microbatch's whole path, and the stage's other actions that must lie before or behind it:
        GPipe, all stages as many r     T + S + (m - 1) (f + b)                                  (2)
        1F1B                            T + S + (m - y) (f + b) + (y - 1) max(f, b)              (3)
    d turns, each from the stage down and back, the first and the last microbatch among them (1F1B):
                                        T + S + (d - 1) beyond + (m - 1 - (d - 1) (y - 1)) (f + b)
                                        for 2 <= d <= 1 + floor((m - 1) / y)                     (4)
    a link that queues q sends          T + S + (q - 1) max(send, send back)                     (5)

(3) holds for any schedule with y = m. A link from r ranks to r' ranks carries q = ceil(microbatches
/ lcm(r, r')) sends. Where GPUs differ, a stage runs as fast as its slowest rank, and layers ahead
and behind as fast as the fastest stage there.

Where layers may be recomputed or offloaded, f and b include the seconds that the stage's best
policies add (autopart/activations/best_totals.py). F, B, T and beyond include the fewest seconds
that policies add ahead and behind (autopart/bounds/policy_seconds.py).

(1)-(5) include the sends on their paths. Stage 0's sync and update follow (2)-(5), and the drain in
(1). All depend on s, i and j only. So no partition on a layout is faster than the smallest possible
largest bound of a stage. A partition that beats a value has only stages with bounds below it.
`paths_below` lists those; where there are none, no plan beats the value.

The period has the same bounds, but its ranks start on their own: (1) has the fill only where the path
goes back to stage 0 (docs/objectives.md).
"""

import math
from typing import NamedTuple

import numpy as np

from autopart.activations.best_totals import with_best_policies
from autopart.bounds.any_nodes import OnAnyNodes, on_any_nodes
from autopart.bounds.microbatch_path import LayoutPaths, Matrix, MicrobatchPath, step_ends
from autopart.bounds.policy_seconds import PolicySeconds
from autopart.cost.cuts import Cuts
from autopart.cost.in_flight import microbatches_in_flight
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_syncs import time_after_backward
from autopart.cost.stage_times import cut_links
from autopart.cost.syncs import SyncPrice, sync_price
from autopart.cost.tied_syncs import (
    TiedPrice,
    least_tied_prices,
    shared_ties,
    without_shared_ties,
)
from autopart.records.layouts import Layout, own_microbatches
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time


def stage_bounds(problem: Problem, layout: Layout, cuts: Cuts) -> list[Matrix]:
    """For each stage in a layout, the largest among (1)-(5) in seconds with [i, j] in its place.

    Each matrix has the shape (N, N) for N cuts, and is read-only. It is infinite where there is no
    stage, where a pin breaks, and where the stage does not fit into memory.
    """
    common = on_any_nodes(problem, layout, cuts)
    if len(common.fitting) < len(layout.stage_ranks):
        return [np.full(cuts.nested.shape, np.inf)] * len(layout.stage_ranks)
    paths = LayoutPaths(problem, layout, cuts, cut_links(problem.cluster, layout.stage_ranks))
    prices = _stage_prices(problem, layout)

    def end_of(at: int) -> Matrix:
        def made() -> Matrix:
            return _sync_and_update(problem, layout, cuts, at, prices[at])

        return common.matrix(("end", at, prices[at]), made)

    def bound_of(stage: int) -> Matrix:
        def made() -> Matrix:
            own_end, first_end = step_ends(end_of, stage)
            path, compute = _path_around(problem, layout, paths, stage, common)
            if problem.objective == "period":
                # A rank's period runs from its own first action to the end of its own update.
                own_end = own_end - path.fill(sends_overlap=problem.cluster.sends_overlap)
            ends = own_end, first_end
            longest = longest_chain(problem, layout, stage, path, compute, ends)
            return np.where(common.fitting[stage], longest, np.inf)

        # The ranks matter through these links and prices alone.
        return common.matrix((stage, paths.sends_around(stage), prices[stage], prices[0]), made)

    bounds: list[Matrix] = []
    for stage in range(len(layout.stage_ranks)):
        check_time()
        bounds.append(bound_of(stage))
    return bounds


def _path_around(
    problem: Problem, layout: Layout, paths: LayoutPaths, stage: int, common: OnAnyNodes
) -> tuple[MicrobatchPath[Matrix], Matrix]:
    """The path around a stage under the best policies, and T."""
    totals = on_ranks(
        with_best_policies(problem, layout, paths.cuts, stage), problem, layout, stage
    )
    added = common.policies[stage]
    path = _with_policies(paths.around(stage, totals), added)
    if len(set(paths.speeds)) > 1:
        return path, path.compute
    # T itself, with the fewest added seconds in both directions together, is larger.
    both = added.both
    return path, paths.compute_of_all() + both.ahead + both.own + both.behind


def _with_policies(path: MicrobatchPath[Matrix], added: PolicySeconds) -> MicrobatchPath[Matrix]:
    """The path with the fewest seconds that policies add ahead and behind.

    The stage has its own already.
    """
    return path._replace(
        compute_before=path.compute_before + added.forward.ahead,
        compute_beyond=path.compute_beyond + added.both.behind,
        compute_after=path.compute_after + added.backward.ahead,
    )


def longest_chain(
    problem: Problem,
    layout: Layout,
    stage: int,
    path: MicrobatchPath[Matrix],
    compute: Matrix,
    ends: tuple[Matrix, Matrix],
) -> Matrix:
    """The largest among (1)-(5).

    `compute` is T. `ends` are sync and update of the stage itself, and of stage 0.
    """
    beside, alone = chains(problem, layout, stage, path, ends)
    return np.maximum(path.with_sends(compute) + beside, alone)


def chains(
    problem: Problem,
    layout: Layout,
    stage: int,
    path: MicrobatchPath[Matrix],
    ends: tuple[Matrix, Matrix],
) -> tuple[Matrix, Matrix]:
    """The largest among (2)-(5) without T + S in seconds for every [i, j], and (1).

    `ends` are sync and update of the stage itself, and of stage 0.
    """
    overlap, (own_end, first_end) = problem.cluster.sends_overlap, ends
    m, y = own_microbatches(layout, stage), microbatches_in_flight(layout, stage)
    busy_f, busy_b = path.busy(sends_overlap=overlap)
    busy = busy_f + busy_b
    counts = [len(ranks) for ranks in layout.stage_ranks]
    # (2), (3): beside one microbatch's path, the other actions on the rank.
    if layout.schedule == "gpipe" and len(set(counts)) == 1:
        beside = (m - 1) * busy
    else:
        beside = (m - y) * busy + (y - 1) * np.maximum(busy_f, busy_b)
    # (5): where sends occupy their ranks, (2) and (3) count them.
    if overlap:
        queued = math.ceil(layout.num_microbatches / math.lcm(*counts[stage : stage + 2]))
        sends = (queued - 1) * np.maximum(path.send, path.receive_back)
        beside = np.maximum(beside, sends)
    if layout.schedule == "1f1b" and m > y:
        beside = np.maximum(beside, turns_beside_trip(path, m, y, sends_overlap=overlap))
    # (1), whose drain may be hidden behind the stage's own sync.
    fill, drain = path.fill(sends_overlap=overlap), path.drain(sends_overlap=overlap)
    alone = fill + m * busy + np.maximum(drain + first_end, own_end)
    return beside + first_end, alone


def turns_beside_trip(
    path: MicrobatchPath[Matrix], m: int, y: int, *, sends_overlap: bool
) -> Matrix:
    """(4) without T + S, for y < m."""
    beyond = path.compute_beyond + path.sends_beyond
    if sends_overlap:
        # Other sends over the stage's own cut are in its busy seconds already.
        beyond = beyond + path.send + path.receive_back
    busy_f, busy_b = path.busy(sends_overlap=sends_overlap)
    busy = busy_f + busy_b
    # The bound is linear in d, so the fewest turns or the most are the largest.
    few, many = (
        (d - 1) * beyond + (m - 1 - (d - 1) * (y - 1)) * busy for d in (2, (m - 1) // y + 1)
    )
    return np.maximum(few, many)


class _StagePrices(NamedTuple):
    """Prices of the syncs that a stage joins."""

    own: SyncPrice
    """The sync among its replicas."""
    tied: tuple[tuple[TiedPrice, ...], ...]
    """For each tied parameter, prices of which the least bounds its sync."""


def _stage_prices(problem: Problem, layout: Layout) -> list[_StagePrices]:
    """The prices of each stage's syncs, which depend on the nodes of its ranks."""
    tied = [len(set(tied.layers)) for tied in problem.graph.tied]
    cluster, training = problem.cluster, problem.training
    found: list[_StagePrices] = []
    for stage, ranks in enumerate(layout.stage_ranks):
        own = sync_price(cluster, ranks, training)
        others = [other for at, other in enumerate(layout.stage_ranks) if at != stage]
        of_copies = {
            copies: tuple(
                dict.fromkeys(least_tied_prices(cluster, ranks, others, copies, training))
            )
            for copies in set(tied)
        }
        found.append(_StagePrices(own, tuple(of_copies[copies] for copies in tied)))
    return found


def _sync_and_update(
    problem: Problem, layout: Layout, cuts: Cuts, stage: int, prices: _StagePrices
) -> Matrix:
    """Seconds from a last backward to the rank's end, with all syncs that [i, j] surely joins."""
    totals = on_ranks(with_best_policies(problem, layout, cuts, stage), problem, layout, stage)
    replicas = len(layout.stage_ranks[stage])
    unshared = without_shared_ties(problem, cuts, totals)
    end: Matrix = time_after_backward(problem, unshared, prices.own, replicas, stage=stage)
    ties = zip(problem.graph.tied, prices.tied, shared_ties(problem, cuts), strict=True)
    for tied, of_tied, shared in ties:
        # The fastest sync that joins this stage with others counts where these have some copies.
        least = min((one.seconds(tied, problem.training) for one in of_tied), default=0.0)
        end = end + shared * least
    return end
