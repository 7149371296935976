"""The lower bound over every order of actions for a whole problem, whatever schedules it asks for.

All demands hold, except those on schedules and stages per rank. The replicas of a stage are a group
of ranks, and a group may run any number of stages in any order, with whole or split backwards. So
the bound says how much other orders could still gain.

It is the smallest of the bounds (13)-(17) in autopart/bounds/any_order_shapes.py, over all numbers
of replicas and of groups. Each group has a stage, and there are as many stages as layers or as the
user names, at most. Groups that cannot hold the model's state are left out: (9) in
autopart/bounds/of_shape.py.

Where stages have replicas of their own, r is at most the microbatches, all GPUs share the work, and
each layer has (14)-(16). Where a named schedule may run overlapped pairs, each backward is shorter by
all that a pair could save (autopart/bounds/pair_savings.py). Policies that recompute or offload add seconds, and are left out.
"""

import heapq
from collections.abc import Iterator

from autopart.bounds.any_order_shapes import AnyOrderBounds
from autopart.bounds.of_shape import least_bytes
from autopart.bounds.pair_savings import without_savings_if_paired
from autopart.records.cluster import largest_memory, num_gpus
from autopart.records.problem import Problem


def any_order_bound(problem: Problem) -> float:
    """Seconds that no plan can beat in a step under any order; infinite where nothing fits."""
    problem = without_savings_if_paired(problem)
    bounds = AnyOrderBounds(problem, split=True)
    if problem.demands.replicas_per_stage:
        return bounds.step_of_own_replicas(num_gpus(problem.cluster))
    # Bounds by (17) take longer. They are found for the shapes whose other bounds are smallest.
    open_ = [(step, False, groups, r) for step, groups, r in _quick(problem, bounds)]
    heapq.heapify(open_)
    while open_:
        step, packed, groups, r = heapq.heappop(open_)
        if packed:
            return step
        heapq.heappush(open_, (bounds.packed(groups, r, step), True, groups, r))
    return float("inf")


def _quick(problem: Problem, bounds: AnyOrderBounds) -> Iterator[tuple[float, int, int]]:
    """(13)-(16) in seconds, groups, and replicas, for all shapes that may hold the model."""
    demands, usable = problem.demands, largest_memory(problem.cluster)
    usable -= problem.cluster.reserve_bytes
    gpus, stages = num_gpus(problem.cluster), demands.num_stages or len(problem.graph.layers)
    for r in range(1, min(gpus, problem.num_microbatches) + 1):
        if problem.num_microbatches % r or demands.num_replicas not in (None, r):
            continue
        needed, most = least_bytes(problem, r, any_order=True), min(gpus // r, stages)
        for groups, step in enumerate(bounds.steps(most, r).tolist(), 1):
            if needed <= usable * groups:
                yield step, groups, r
