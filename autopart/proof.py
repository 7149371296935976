"""A lower bound proven again, without the search that found it.

Only closed-form bounds, the lists of what they leave open, and the simulator are used. A bound holds where
every layout either has bounds that reach it, or leaves open partitions that were all simulated.
"""

import itertools
from collections.abc import Sequence

from autopart.bounds import paths_below
from autopart.cuts import Cuts, all_cuts, list_all
from autopart.errors import InfeasibleError, PlanError
from autopart.layout_bounds import layout_bounds, proves, quick_bounds
from autopart.layouts import Layout, layouts, layouts_of, shapes
from autopart.pricing import compile_layout, price_paths
from autopart.problem import Problem
from autopart.replica_bounds import MOST_COUNTS, ReplicaBounds, counts_below, value_in_any_order
from autopart.steady import shape_bottlenecks, stage_bottlenecks

TOLERANCE = 1e-9
"""Relative difference below which two times that were added up in different orders are equal."""


def check_bound(problem: Problem, value: float, simulated: int) -> None:
    """Raise PlanError unless no plan of a problem has a smaller objective than `value` seconds
    (infinite: there is no plan), which is to be proven by simulating `simulated` partitions."""
    try:
        if problem.objective == "bottleneck":
            _no_bottleneck_beats(problem, value, simulated)
        elif problem.demands.replicas_per_stage:
            _no_replicas_beat(problem, value, simulated)
        else:
            _nothing_beats(problem, value, simulated)
    except InfeasibleError:
        # The demands leave this problem no plan at all, so any bound holds for it.
        if simulated:
            raise PlanError(
                f"microbatches of {problem.microbatch_size} have no plan to simulate"
            ) from None


def _no_bottleneck_beats(problem: Problem, value: float, expected: int) -> None:
    """Go over every shape and layout: either its quick bound reaches `value`, or no path over the cuts
    has all stages below it. Nothing needs simulating."""
    if expected:
        raise PlanError(
            f"a bottleneck is proven without simulating, not with {expected} partitions"
        )
    cuts, least = all_cuts(problem.graph), value * (1 - TOLERANCE)
    for (k, r), bound in shape_bottlenecks(problem, shapes(problem)).items():
        if bound is None or bound >= least:
            continue
        if not list_all(cuts, k):
            raise PlanError(
                f"with {k} stages and {r} replicas only {bound} s is proven, not {value} s"
            )
        for layout in layouts(problem, k, r):
            below = paths_below(stage_bottlenecks(problem, layout, cuts), least)
            if next(below, None) is not None:
                raise PlanError(
                    f"the bound {value} is not proven: with {k} stages of {r} replicas there are "
                    "stages with a smaller bottleneck"
                )


def _nothing_beats(problem: Problem, value: float, expected: int) -> int:
    """Go over every shape and layout: either its bounds reach `value`, or each partition that
    they leave open is simulated. Raises PlanError where something is faster, or where there are
    other than the `expected` number of partitions to simulate."""
    quick = quick_bounds(problem, shapes(problem))
    cuts = all_cuts(problem.graph)
    open_layouts: list[Layout] = []
    for shape, bound in quick.items():
        if bound is None or bound >= value:
            continue
        for layout in layouts(problem, *shape):
            if not proves(problem, layout):
                continue
            if not list_all(cuts, len(layout.stage_ranks)):
                raise PlanError(
                    f"with {len(layout.stage_ranks)} stages and {shape[1]} replicas only {bound} s "
                    f"is proven, not {value} s"
                )
            open_layouts.append(layout)
    return _simulate_open(problem, cuts, open_layouts, value, expected)


def _no_replicas_beat(problem: Problem, value: float, expected: int) -> int:
    """`_nothing_beats` where each stage may have replicas of its own."""
    cuts = all_cuts(problem.graph)
    if not cuts.complete:
        if value > value_in_any_order(problem) * (1 + TOLERANCE):
            raise PlanError(f"only {value_in_any_order(problem)} s is proven, not {value} s")
        return _simulate_open(problem, cuts, [], value, expected)
    below = counts_below(ReplicaBounds(problem, cuts), value)
    counts = list(itertools.islice(below, MOST_COUNTS + 1))
    if len(counts) > MOST_COUNTS:
        raise PlanError(
            f"the bound {value} is not proven: more than {MOST_COUNTS} lists of replicas are open"
        )
    open_layouts = [layout for own in counts for layout in layouts_of(problem, own)]
    return _simulate_open(problem, cuts, open_layouts, value, expected)


def _simulate_open(
    problem: Problem, cuts: Cuts, open_layouts: Sequence[Layout], value: float, expected: int
) -> int:
    """Simulate every partition of some layouts that the bounds leave open below `value`."""
    least, simulated = value * (1 - TOLERANCE), 0
    for layout in open_layouts:
        below = layout_bounds(problem, layout, cuts).paths_below(value)
        paths = list(itertools.islice(below, expected - simulated + 1))
        simulated += len(paths)
        steps = price_paths(problem, layout, compile_layout(layout), cuts, paths) if paths else []
        if simulated > expected or min(steps, default=value) < least:
            counts = [len(ranks) for ranks in layout.stage_ranks]
            raise PlanError(
                f"the bound {value} is not proven: on stages of {counts} replicas a plan takes "
                f"{min(steps, default=value)} s, or more than {expected} need simulating"
            )
    if simulated != expected:
        raise PlanError(f"{expected} partitions should need simulating, found {simulated}")
    return simulated
