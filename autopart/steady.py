"""The bottleneck: how long a step keeps its busiest rank occupied, and lower bounds on that.

Symbols   k stages, m microbatches of a step, r replicas of each stage; n = ceil(m / r) those of a rank
          busy    seconds that a microbatch occupies a rank of the stage: its F, its B, their fixed costs
                  and, where sends do not overlap with compute, its sends (autopart/cost)
          t       forward and backward of a layer; T of all layers;  o  the fixed costs of an F and a B

    bottleneck = max over stages of n busy                                                         (1)
    bottleneck >= n (max(T / k, the largest t) + o)             for every division into k stages   (2)

(1) of a stage [i, j] depends on its place and its cuts only. So the smallest bottleneck of a layout is
that of a path over the cuts, and no path with all stages below a value proves that value.
"""

from collections.abc import Sequence

import numpy as np

from autopart.bounds import shape_bounds
from autopart.cluster import fastest_speed
from autopart.cost import busy_time, cut_links, fits_on_ranks, links_around, occupied_time, on_ranks
from autopart.cuts import Cuts, allowed
from autopart.layouts import Layout, own_microbatches
from autopart.problem import Problem
from autopart.stage_load import Number
from autopart.treated import treated


def shape_bottlenecks(
    problem: Problem, shapes: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float | None]:
    """(2) in seconds, for each (stages, replicas); None where not even all memory holds the model."""
    layers, speed = problem.graph.layers, fastest_speed(problem.cluster)
    work = [(la.forward_time + la.input_grad_time + la.weight_grad_time) / speed for la in layers]
    fixed = 2 * problem.cluster.action_overhead

    def bound(k: int, r: int) -> float:
        own = -(-problem.num_microbatches // r)
        return occupied_time(max(sum(work) / k, max(work)) + fixed, own)

    held = shape_bounds(problem, shapes)
    return {(k, r): None if held[k, r] is None else bound(k, r) for k, r in shapes}


def stage_bottlenecks(problem: Problem, layout: Layout, cuts: Cuts) -> list[Number]:
    """(1) in seconds, for each stage of a layout and every stage [i, j] between two of N cuts, as
    matrices of shape (N, N); infinite where that is no stage, breaks a pin, or does not fit."""
    links = cut_links(problem.cluster, layout.stage_ranks)
    bottlenecks: list[Number] = []
    for stage in range(len(layout.stage_ranks)):
        own = own_microbatches(layout, stage)
        load = on_ranks(treated(problem, layout, cuts, stage), problem, layout, stage)
        may = fits_on_ranks(load, problem, layout, stage)
        may = may & allowed(cuts, problem.graph, problem.demands, stage)
        busy = busy_time(load, problem.cluster, *links_around(links, stage))
        bottlenecks.append(np.where(may, occupied_time(busy, own), np.inf))
    return bottlenecks
