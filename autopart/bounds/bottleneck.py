"""The bottleneck: how long a step keeps its busiest rank occupied, and lower bounds on that.

Symbols   k stages, m microbatches per step, r replicas per stage; n = ceil(m / r) on one rank
          busy    seconds that a microbatch occupies one rank on the stage: F, B, their fixed costs
                  and, where sends do not overlap with compute, its sends (autopart/cost)
          t       forward and backward of one layer, T of all;  o  fixed costs for one F and one B

    bottleneck = max over stages of n busy                                                       (1)
    bottleneck >= n (max(T / k, the largest t) + o)          for every division into k stages   (2)

(1) depends on the stage's place and its two cuts only. So a layout's smallest bottleneck belongs to
a path over the cuts. A value holds as a lower bound where no path has all stages below it.
"""

from collections.abc import Sequence

import numpy as np

from autopart.activations.best_totals import with_best_policies
from autopart.bounds.any_order_shapes import Shape
from autopart.bounds.microbatch_path import Matrix
from autopart.bounds.of_shape import classic_shape_bounds
from autopart.cost.cuts import Cuts, allowed
from autopart.cost.memory_limits import fits_on_ranks
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_times import busy_time, cut_links, links_around, occupied_time
from autopart.records.cluster import fastest_speed
from autopart.records.layouts import Layout, own_microbatches
from autopart.records.problem import Problem
from autopart.schedules.actions import microbatches_per_replica
from autopart.stopping.time_limit import check_time


def shape_bottlenecks(problem: Problem, shapes: Sequence[Shape]) -> dict[Shape, float | None]:
    """(2) in seconds for each (stages, replicas); None where memory does not hold the model."""
    layers, speed = problem.graph.layers, fastest_speed(problem.cluster)
    work = [(la.forward_time + la.input_grad_time + la.weight_grad_time) / speed for la in layers]
    fixed = 2 * problem.cluster.action_overhead

    def bound(k: int, r: int) -> float:
        own = microbatches_per_replica(problem.num_microbatches, r)
        return occupied_time(max(sum(work) / k, max(work)) + fixed, own)

    steps = classic_shape_bounds(problem, shapes)
    return {(k, r): None if steps[k, r] is None else bound(k, r) for k, r in shapes}


def stage_bottlenecks(problem: Problem, layout: Layout, cuts: Cuts) -> list[Matrix]:
    """For each stage in a layout, (1) in seconds with [i, j] in its place.

    Each matrix has the shape (N, N) for N cuts. It is infinite where there is no stage, where a pin
    breaks, and where the stage does not fit into memory.
    """
    links = cut_links(problem.cluster, layout.stage_ranks)
    bottlenecks: list[Matrix] = []
    for stage in range(len(layout.stage_ranks)):
        check_time()
        own = own_microbatches(layout, stage)
        totals = on_ranks(with_best_policies(problem, layout, cuts, stage), problem, layout, stage)
        may = fits_on_ranks(totals, problem, layout, stage)
        may = may & allowed(cuts, problem.graph, problem.demands, stage)
        busy = busy_time(totals, problem.cluster, *links_around(links, stage))
        bottlenecks.append(np.where(may, occupied_time(busy, own), np.inf))
    return bottlenecks
