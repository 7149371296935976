"""Lower bounds for graphs with too many cuts to list: over classes of cuts, with lower totals.

Every bound on a stage grows with the stage's totals, and with the totals ahead and behind. So the
bounds of autopart/bounds/ hold with lower totals (autopart/cost/cut_classes.py). Each partition is
a path through the classes, and the smallest possible largest bound over such paths bounds it.

Activation policies only add seconds. Where a problem leaves a choice of them, stages here have none,
and memory has no limit.
"""

from collections.abc import Callable

import msgspec

from autopart.activations.policies import leaves_choice
from autopart.bounds.of_layout import LayoutBounds
from autopart.cost.cut_classes import class_cuts
from autopart.cost.cuts import Cuts
from autopart.records.cluster import without_memory_limit
from autopart.records.layouts import Layout
from autopart.records.problem import Problem


def class_bounds(
    problem: Problem,
    layout: Layout,
    of_layout: Callable[[Problem, Layout, Cuts], LayoutBounds],
) -> tuple[LayoutBounds, Cuts] | None:
    """The bounds `of_layout` over classes of cuts, and these classes.

    Each partition of the layout has a path through the classes whose bounds its step does not beat.
    None where the demands name too many layers for classes.
    """
    demands = problem.demands
    named = {pin.layer for pin in demands.pins}
    named |= {name for group in demands.same_stage + demands.different_stage for name in group}
    cuts = class_cuts(problem.graph, frozenset(named))
    return None if cuts is None else (of_layout(_without_policies(problem), layout, cuts), cuts)


def _without_policies(problem: Problem) -> Problem:
    """The problem without a choice of policies, where no stage can lack memory."""
    demands, cluster = problem.demands, problem.cluster
    if not leaves_choice(demands):
        return problem
    plain = msgspec.structs.replace(
        demands,
        recompute="never",
        offload="never",
        offload_optimizer="never",
        recompute_layers=(),
        selective_layers=(),
        offload_layers=(),
    )
    roomy = msgspec.structs.replace(without_memory_limit(cluster), host_memory_bytes=None)
    return msgspec.structs.replace(problem, cluster=roomy, demands=plain)
